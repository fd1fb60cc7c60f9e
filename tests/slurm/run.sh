#!/bin/sh
# Start a Slurm on this machine alone, in a temporary folder, run the command that is given, and stop it again:
#   tests/slurm/run.sh .venv/bin/python -m pytest -m slurm tests/sweep/test_slurm.py
# Needs root; on Debian or Ubuntu it installs the package slurm-wlm if there is no slurmctld.
set -eu

if ! command -v slurmctld > /dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "error: expected slurmctld, or root on Debian or Ubuntu to install it" >&2
        exit 2
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm > /dev/null
fi

folder=$(mktemp -d -t isaseg-slurm-XXXXXX)
host=$(hostname -s)
stop() {
    scancel --user="$(id -un)" 2> /dev/null || true
    for daemon in slurmd slurmctld; do
        pid=$(cat "$folder/$daemon.pid" 2> /dev/null || true)
        [ -z "$pid" ] || kill "$pid" 2> /dev/null || true
    done
    sleep 2
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM

mkdir "$folder/state" "$folder/spool"
cat > "$folder/slurm.conf" << END
ClusterName=isaseg
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF="$folder/slurm.conf"
slurmctld -c
slurmd
for _ in 1 2 3 4 5 6 7 8 9 10; do
    if sinfo --noheader --states=idle 2> /dev/null | grep -q "$host"; then
        break
    fi
    sleep 1
done
"$@"
