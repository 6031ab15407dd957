#!/usr/bin/env bash
# Install Slurm and munge from Debian's packages if they are missing and we may. Their services are not started: the tests start their own.
set -euo pipefail
have() { for name; do command -v "$name" >/dev/null || return 1; done; }  # command -v alone is content with one of several
if have slurmctld sbatch munged ip; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Slurm is not installed, and installing it takes root and apt: the tests that need it will be skipped" >&2
    exit 0
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2 >/dev/null
