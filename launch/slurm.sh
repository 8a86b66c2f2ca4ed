#!/usr/bin/env bash
# One gramjax command on the nodes of a SLURM job: sbatch [SBATCH OPTIONS] slurm.sh [OPTIONS] VERB [ARGUMENTS ...]
#
#   sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh train --config=NAME --workdir=DIR
#
#   --processes=per_node|per_gpu   a process that sees all GPUs of its node (the default), or one process per GPU
#   --container=IMAGE              run in a container: a .sif file (apptainer), or what pyxis calls an image
#   --mounts=HOST:INSIDE[,...]     further folders that the container sees, besides this one
#
# Five minutes before the time is over SLURM asks the job to stop. It saves, exits with 75, and is put into the queue
# again, where the same command goes on; so it is after 77 (nothing moved any more). A node that fails is SLURM's to
# notice, which starts the job anew by itself. Any other end is final: 0 done, 2 and 3 for you to mend, 76 hopeless.
#SBATCH --job-name=gramjax
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --open-mode=append
set -uo pipefail

# What `gramjax launch slurm` fills in; arguments replace it.
processes=per_node
container=
mounts=
environment=()
command=()

fail() { echo "slurm.sh: $1" >&2; exit 2; }
while [[ $# -gt 0 ]]; do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --container=*) container=${1#*=} ;;
    --mounts=*) mounts=${1#*=} ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) command=("$@"); break ;;
  esac
  shift
done
[[ ${#command[@]} -gt 0 ]] || fail "give a verb of gramjax, such as train (--help)"
[[ -n ${SLURM_JOB_ID:-} ]] || fail "this runs inside a SLURM job: sbatch $0 ${command[*]}"
[[ ${#environment[@]} -eq 0 ]] || export "${environment[@]}"

job=$SLURM_JOB_ID # which is also the name of a whole array in one of its jobs
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
nodes=${SLURM_NNODES:-1} gpus=${SLURM_GPUS_ON_NODE:-0} tasks=1
case $processes in
  per_node)
    # JAX gives a SLURM task one GPU unless it is told which are its own.
    if [[ $gpus -gt 0 ]]; then JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1))); export JAX_LOCAL_DEVICE_IDS; fi ;;
  per_gpu)
    [[ $gpus -gt 0 ]] || fail "--processes=per_gpu, but the job has no GPUs (sbatch --gpus-per-node=N)"
    tasks=$gpus ;;
  *) fail "--processes=$processes: expected per_node or per_gpu" ;;
esac

# Every task sees the GPUs of its node and picks its own by number, and a process that ends ends no other: all save.
launch=(srun "--nodes=$nodes" "--ntasks=$((nodes * tasks))" "--ntasks-per-node=$tasks" --kill-on-bad-exit=0)
if [[ $gpus -gt 0 ]]; then launch+=(--gpu-bind=none); fi
if [[ ${SLURM_CPUS_ON_NODE:-0} -ge $tasks ]]; then launch+=("--cpus-per-task=$((SLURM_CPUS_ON_NODE / tasks))"); fi
gramjax=(gramjax)
visible=$PWD:$PWD${mounts:+,$mounts}
if [[ $container == *.sif ]]; then
  inside=(apptainer exec --bind "$visible" --pwd "$PWD")
  if [[ $gpus -gt 0 ]]; then inside+=(--nv); fi
  gramjax=("${inside[@]}" "$container" gramjax)
elif [[ -n $container ]]; then
  launch+=("--container-image=$container" "--container-mounts=$visible" "--container-workdir=$PWD")
elif ! command -v gramjax >/dev/null; then
  gramjax=("${PYTHON:-python3}" -m gramjax)
fi

# The code of the first process that fails: srun reports the highest, and the partners of one that fails are aborted.
export GRAMJAX_CODES=$PWD/.gramjax-$job.codes
rm -f "$GRAMJAX_CODES"

# SLURM tells this shell alone to stop; srun would kill the tasks if it were told. A job that is being ended (scancel,
# no time left) has told its tasks itself, and a second request would not let them save.
told=0 over=0
# shellcheck disable=SC2329 # called by the trap
tell() {
  told=1
  if [[ $(squeue --noheader "--jobs=$job" --format=%T) == COMPLETING ]]; then over=1; else scancel --signal=TERM "$job"; fi
}
trap tell TERM
"${launch[@]}" "${gramjax[@]}" "${command[@]}" &
step=$!
wait "$step"
code=$?
while [[ $told -eq 1 ]]; do # the signal ended the wait, not the step
  told=0
  wait "$step"
  code=$?
done

if [[ -s $GRAMJAX_CODES ]]; then read -r code < "$GRAMJAX_CODES"; fi
rm -f "$GRAMJAX_CODES"
echo "slurm.sh: the job ended with $code" >&2
again=0
case $code in
  75 | 77) again=1 ;;
  # A process lost a partner that could not say why: it was killed, or its node is gone, or it was stuck. A run that
  # dies at the same step again and again ends itself with 76.
  134) [[ $((nodes * tasks)) -eq 1 ]] || again=1 ;;
esac
if [[ $again -eq 1 && $over -eq 0 ]]; then
  echo "slurm.sh: job $job goes back into the queue (${SLURM_RESTART_COUNT:-0} times so far)" >&2
  scontrol requeue "$job"
fi
exit "$code"
