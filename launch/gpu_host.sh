#!/usr/bin/env bash
# All GPUs of one host, or N processes on one machine: gpu_host.sh [--processes=N] [--port=P] VERB [ARGUMENTS ...]
#
#   launch/gpu_host.sh train --config=bradley_terry --workdir=runs/bt        one process that sees every GPU (the usual way)
#   launch/gpu_host.sh --processes=8 train ...                               one process per GPU
#   JAX_PLATFORMS=cpu launch/gpu_host.sh --processes=2 train ...             two processes on a CPU, joined by jax.distributed
#
# --port=P is where several processes meet, on this host; without it they take one that is free.
# SIGTERM and Ctrl-C are passed on to every process. When one ends badly the others are ended too, and its exit code is
# that of the script: 75 means that the state is saved and the same command goes on. Processes that stop on request do so
# together; one that is still there GRAMJAX_LINGER seconds (30) later was never told and is asked, then ended.
set -uo pipefail

processes=1 port=
while [[ $# -gt 0 ]]; do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) break ;;
  esac
  shift
done
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
  echo "gpu_host.sh: --processes=$processes is not a positive number" >&2
  exit 2
fi
if ! [[ ${GRAMJAX_LINGER:=30} =~ ^[0-9]+$ ]]; then
  echo "gpu_host.sh: GRAMJAX_LINGER=$GRAMJAX_LINGER is not a whole number of seconds" >&2
  exit 2
fi
if [[ $# -eq 0 ]]; then
  echo "gpu_host.sh: give a verb of gramjax, such as train (--help)" >&2
  exit 2
fi

gramjax=(gramjax)
command -v gramjax >/dev/null || gramjax=("${PYTHON:-python3}" -m gramjax)
if [[ $processes -eq 1 ]]; then
  if [[ -n $port ]]; then
    echo "gpu_host.sh: --port=$port is where several processes meet; one has nobody to meet" >&2
    exit 2
  fi
  exec "${gramjax[@]}" "$@"
fi

gpus=0
if [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
  gpus=$(nvidia-smi --list-gpus | wc -l)
  if [[ $gpus -ne $processes ]]; then
    echo "gpu_host.sh: --processes=$processes, but this host has $gpus GPUs: one process per GPU, or leave it out" >&2
    exit 2
  fi
fi
# A port that is free now; the same for all processes, which find each other there.
port=${port:-$("${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}

pids=() came=""
# shellcheck disable=SC2329 # called by the traps
forward() {
  came=$1
  kill "-$1" "${pids[@]}" 2>/dev/null
}
trap 'forward TERM' TERM
trap 'forward INT' INT
for ((i = 0; i < processes; i++)); do
  (
    export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$i
    if [[ $gpus -gt 0 ]]; then export CUDA_VISIBLE_DEVICES=$i; fi
    exec "${gramjax[@]}" "$@"
  ) &
  pids+=($!)
done
if [[ -n $came ]]; then forward "$came"; fi # asked while they were started: the later ones have not heard of it

# The first bad exit decides. A peer that lost its partner is aborted by the runtime (134): that says less than the cause.
# `wait -n` says which is the first, but forgets one of two that end at the same moment: each is looked at every second.
code=0 since=0
tick="" asked=""
left=("${pids[@]}")
while [[ ${#left[@]} -gt 0 ]]; do
  if [[ -z $tick ]] || ! kill -0 "$tick" 2>/dev/null; then
    sleep 1 >/dev/null 2>&1 &
    tick=$!
  fi
  ended=
  wait -n -p ended "${left[@]}" "$tick" 2>/dev/null
  running=()
  for pid in ${ended:+"$ended"} "${left[@]}"; do
    if [[ $pid == "$tick" || " ${running[*]} " == *" $pid "* ]]; then continue; fi
    if kill -0 "$pid" 2>/dev/null; then
      running+=("$pid")
      continue
    fi
    wait "$pid"
    status=$?
    if [[ $status -ne 0 && $code -eq 0 ]]; then
      code=$status since=$SECONDS
      for i in "${!pids[@]}"; do
        if [[ ${pids[i]} == "$pid" ]]; then echo "gpu_host.sh: process $i ended with $status" >&2; fi
      done
    fi
  done
  if [[ ${#running[@]} -gt 0 && $code -ne 0 && $code -ne 75 && -z ${given_time:-} ]]; then
    given_time=yes
    sleep "${GRAMJAX_GRACE:-5}" # time for the others to say why
    kill -KILL "${running[@]}" 2>/dev/null
  fi
  # Asked to stop before it had joined the others, a process ends alone: they would wait for it for minutes.
  if [[ ${#running[@]} -gt 0 && $code -eq 75 ]]; then
    if [[ -z $asked && $((SECONDS - since)) -ge $GRAMJAX_LINGER ]]; then
      echo "gpu_host.sh: ${#running[@]} of $processes processes did not stop with it: they are asked to" >&2
      kill -TERM "${running[@]}" 2>/dev/null
      asked=$SECONDS
    elif [[ -n $asked && $((SECONDS - asked)) -ge $GRAMJAX_LINGER ]]; then
      kill -KILL "${running[@]}" 2>/dev/null
    fi
  fi
  left=(${running[@]+"${running[@]}"})
done
exit "$code"
