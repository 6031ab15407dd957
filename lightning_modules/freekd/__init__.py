"""FreeKD: graph networks that teach each other, node by node, in the direction that an agent chooses."""
