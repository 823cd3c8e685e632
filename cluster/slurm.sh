#!/usr/bin/env bash
# A Ray cluster inside a Slurm allocation, and one run on it.
#   sbatch --nodes 2 cluster/slurm.sh sft --config run.yaml --output_dir /shared/runs/first
# Whatever stands behind the script goes to `rayswift`. If the allocation ends before the run, submit the same line
# with `--resume auto`. Or let Slurm do it: with
#   sbatch --requeue --signal=B:USR1@120 ...
# the run ends in order two minutes before the allocation does, is queued again, and then continues.
#SBATCH --job-name=rayswift
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --output=%x-%j.log
set -euo pipefail

if [ "$#" -eq 0 ]; then
    echo "usage: sbatch --nodes N $0 sft --config run.yaml ..." >&2
    exit 2
fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_node=${nodes[0]}
# The address of its own name, or, where that is loopback (Debian), of its first network.
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" bash -c 'hostname --ip-address; hostname --all-ip-addresses' |
    tr -s ' ' '\n' | awk '/^[0-9.]+$/ && !/^127\./ {print; exit}')
# Several allocations may share a node: ports that depend on the job.
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS=$head_ip:$port
# Everyone who can reach the port could run code here: a token that only this job's processes know.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
# A node that drops off the network is dead after half a minute; by default after more than one.
export RAY_health_check_timeout_ms=3000

start_node() { # node, flags of `ray start`
    local node=$1
    shift
    # Each node's own counts: nodes may differ.
    # shellcheck disable=SC2016
    env -u RAY_ADDRESS srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" bash -c \
        'exec ray start --block --num-cpus="${SLURM_CPUS_ON_NODE:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" "$@"' \
        ray "$@" &
}

start_node "$head_node" --head --node-ip-address="$head_ip" --port="$port" --include-dashboard=false
for node in "${nodes[@]:1}"; do
    start_node "$node" --address="$RAY_ADDRESS"
done

# The head must answer, and all nodes be there, before the run looks at what it has.
begun=$SECONDS said=$SECONDS
while true; do
    there=$(python3 - <<'PY' || echo 0
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(sum(node["Alive"] for node in ray.nodes()))
PY
    )
    if [ "$there" -ge "${#nodes[@]}" ]; then
        break
    fi
    waited=$((SECONDS - begun))
    if [ "$waited" -ge 300 ]; then
        echo "only $there of ${#nodes[@]} nodes joined the Ray cluster at $RAY_ADDRESS within $waited s" >&2
        exit 1
    fi
    if [ $((SECONDS - said)) -ge 20 ]; then
        said=$SECONDS
        echo "$there of ${#nodes[@]} nodes have joined the Ray cluster at $RAY_ADDRESS after $waited s" >&2
    fi
    sleep 2
done

resume=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [[ ! " $*" =~ " --"(train\.)?resume[\ =] ]]; then
    resume=(--resume auto)
fi
run="" early=false requeue=false
hand_on() { # a signal, to the run, or to the lines that start it
    if [ -n "$run" ]; then
        kill -TERM "$run" || true
    else
        early=true
    fi
}
# Before the run starts: a signal in between would end this script, and the run would not hear of it.
trap hand_on TERM INT
trap 'requeue=true; hand_on' USR1
# In the background: bash would hear a signal only when the command in front of it has ended.
rayswift "$@" "${resume[@]}" &
run=$!
if "$early"; then
    kill -TERM "$run" || true
fi
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do # a signal ends a `wait`, not the run
    code=0
    wait "$run" || code=$?
done
if "$requeue" && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
