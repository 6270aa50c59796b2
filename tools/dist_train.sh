#!/usr/bin/env bash
# dist_train.sh CONFIG GPUS [flags of train.py]; NNODES, NODE_RANK, MASTER_ADDR and
# PORT tell torchrun about several machines, PYTHON which interpreter to use.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [flags of train.py]" >&2; exit 2; }
here=$(dirname "$0")

PYTHONPATH="$here/..:${PYTHONPATH:-}" "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$here/train.py" "$1" --launcher pytorch "${@:3}"
