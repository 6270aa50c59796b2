#!/usr/bin/env bash
# dist_test.sh CONFIG CHECKPOINT GPUS [flags of test.py]; NNODES, NODE_RANK,
# MASTER_ADDR and PORT tell torchrun about several machines, PYTHON which interpreter to use.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS [flags of test.py]" >&2; exit 2; }
here=$(dirname "$0")

PYTHONPATH="$here/..:${PYTHONPATH:-}" "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$here/test.py" "$1" "$2" --launcher pytorch "${@:4}"
