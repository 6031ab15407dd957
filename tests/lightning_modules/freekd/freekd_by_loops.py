"""FreeKD as the papers' formulas read, one node and one neighbour at a time in float64: slow, and hard to get wrong."""

import math


def softmax(values):
    top = max(values)
    parts = [math.exp(v - top) for v in values]
    return [p / sum(parts) for p in parts]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def neighbours(edges, i):
    """Nodes with an edge into i, in the order of the list, i itself left out."""
    return [source for source, target in edges if target == i and source != i]


def node_losses(logits, teacher):
    """logits[k][i][c], teacher[i] or None for mutual learning -> a loss for each network."""
    networks, nodes = len(logits), len(logits[0])
    p = [[softmax(row) for row in network] for network in logits]
    found = []
    for k in range(networks):
        total = 0.0
        for i in range(nodes):
            others = [m for m in range(networks) if m != k]
            teachers = others if teacher is None else [teacher[i]] if teacher[i] != k else []
            total += sum(kl(p[m][i], p[k][i]) for m in teachers) / (len(others) if teacher is None else 1)
        found.append(total / nodes)
    return found


def structure_losses(z, edges, teacher, carried, tau):
    """z[k][i] vectors; the local structure M_i are the neighbours with i's teacher."""
    networks, nodes = len(z), len(z[0])
    local = [[j for j in neighbours(edges, i) if teacher[j] == teacher[i]] for i in range(nodes)]
    several = sum(len(m) > 1 for m in local)
    found = [0.0] * networks
    for i, members in enumerate(local):
        if len(members) < 2 or not carried[i]:
            continue
        shares = [softmax([cosine(z[k][i], z[k][j]) / tau for j in members]) for k in range(networks)]
        for k in range(networks):
            if k != teacher[i]:
                found[k] += kl(shares[teacher[i]], shares[k]) / several
    return found


def rewards(ce, labelled, edges, gamma):
    """ce[k][i]; only labelled nodes count."""
    nodes = len(ce[0])
    total = [sum(network[i] for network in ce) for i in range(nodes)]
    known = [total[i] for i in range(nodes) if labelled[i]]
    overall = sum(known) / len(known)
    found = []
    for i in range(nodes):
        near = [total[j] for j in neighbours(edges, i) if labelled[j]]
        found.append(-overall - gamma * (sum(near) / len(near) if near else 0.0))
    return found
