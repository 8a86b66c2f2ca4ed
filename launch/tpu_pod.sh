#!/usr/bin/env bash
# One gramjax command on every worker of a TPU slice: tpu_pod.sh --name=TPU --zone=ZONE [OPTIONS] VERB [ARGUMENTS ...]
#
#   launch/tpu_pod.sh --name=mine --zone=us-west4-a train --config=NAME --workdir=/shared/runs/NAME
#
# Copies this checkout to all workers, installs it, starts the command there and shows what they print: one job of all
# for train and evaluate (--distributed=auto); other verbs need a slice of one worker. They go on when the connection
# ends. The folder of the run lies on a disk that all of them share.
#
#   --project=P                        instead of gcloud's default
#   --create=TYPE --runtime=VERSION    first ask for the slice (v5litepod-16, ...) as a queued resource, wait for it
#   --spot                             with --create: cheaper, and may be taken away
#   --python=python3                   the workers' interpreter, 3.11 or newer
#   --env=NAME=VALUE                   a variable for the command; may be given several times
#   --dry_run                          print the commands, run none
#
# Instead of a verb: --follow shows the output again, --stop asks the command to save and end, --delete gives the slice
# back. A command that ended with 75 goes on when it is started again, here or on another slice.
set -euo pipefail

name='' zone='' project='' type='' runtime='' python=python3 spot='' dry_run='' action=start
environment=()
command=()

fail() { echo "tpu_pod.sh: $1" >&2; exit 2; }
while [[ $# -gt 0 ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --create=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --env=*=*) environment+=("${1#*=}") ;;
    --spot | --dry_run) declare "${1#--}=yes" ;;
    --follow | --stop | --delete) action=${1#--} ;;
    -h | --help) sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) fail "unknown option $1 (--help)" ;;
    *) command=("$@"); break ;;
  esac
  shift
done
[[ -n $name && -n $zone ]] || fail "give --name=TPU and --zone=ZONE (--help)"
[[ $action != start || ${#command[@]} -gt 0 ]] || fail "give a verb of gramjax, such as train (--help)"
[[ $action == start || ${#command[@]} -eq 0 ]] || fail "--$action takes no verb: ${command[*]}"
[[ -z $type || -n $runtime ]] || fail "--create=$type needs --runtime=VERSION, the software of its workers"
[[ -z $spot || -n $type ]] || fail "--spot belongs to --create=TYPE"
case ${command[0]:-} in train | evaluate) command+=(--distributed=auto) ;; esac
where=("--zone=$zone" --quiet)
if [[ -n $project ]]; then where+=("--project=$project"); fi

run() { if [[ -n $dry_run ]]; then printf '%q ' "$@" && echo; else "$@"; fi; }
on_workers() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--command=$1"; }
resource() { run gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"; }

create() {
  local state=''
  resource create "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" ${spot:+--spot}
  while [[ -z $dry_run && $state != ACTIVE ]]; do
    state=$(resource describe '--format=value(state.state)')
    echo "tpu_pod.sh: $name is ${state:-not there}" >&2
    case $state in
      ACTIVE) ;;
      FAILED | SUSPENDED) exit 1 ;;
      *) sleep "${GRAMJAX_POLL:-30}" ;;
    esac
  done
}

# Three files lie beside the checkout on every worker: gramjax.log, gramjax.pid, and gramjax.code when it has ended.
# shellcheck disable=SC2016 # the workers' shell expands these
runs='[[ -f gramjax.pid && ! -f gramjax.code ]] && kill -0 "$(cat gramjax.pid)" 2>/dev/null'
install="if $runs; then echo 'a command still runs here (--stop)' >&2; exit 2; fi
  rm -rf gramjax gramjax.code && mkdir gramjax && tar -xzf gramjax.tgz -C gramjax &&
  { [[ -d gramjax.venv ]] || $python -m venv gramjax.venv; } && gramjax.venv/bin/pip install -q './gramjax[tpu]'"
detach='rm -f gramjax.pid; setsid bash gramjax.start > gramjax.log 2>&1 < /dev/null &
  for _ in {1..50}; do [[ -f gramjax.pid ]] || sleep 0.1
  done'
follow="tail -n +1 -f gramjax.log & until [[ -f gramjax.code ]] || ! { $runs; }; do sleep 1; done; sleep 1; kill \$!
  echo \"exit code \$(cat gramjax.code)\"; exit \"\$(cat gramjax.code)\""
stop="if $runs; then kill -TERM \"\$(cat gramjax.pid)\"; fi"

copy() { # what git knows of, and new files that it does not ignore
  local root packed
  root=$(cd "$(dirname "$0")/.." && pwd)
  [[ -f $root/pyproject.toml ]] || fail "$root is no checkout of gramjax: there is no code to copy"
  packed=$(mktemp -d)
  git -C "$root" ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do if [[ -e $root/$file ]]; then printf '%s\0' "$file"; fi; done |
    tar -C "$root" -czf "$packed/gramjax.tgz" --null -T -
  { # in braces: bash reads it to the end before it begins, so that a later copy may replace the file
    printf '{\ncd gramjax\n'
    for variable in ${environment[@]+"${environment[@]}"}; do printf 'export %q\n' "$variable"; done
    printf '../gramjax.venv/bin/gramjax'
    printf ' %q' "${command[@]}"
    printf ' &\necho $! > ../gramjax.pid\nwait $!\necho $? > ../gramjax.code\nexit\n}\n'
  } > "$packed/gramjax.start"
  run gcloud compute tpus tpu-vm scp "$packed/gramjax.tgz" "$packed/gramjax.start" "$name:" "${where[@]}" --worker=all
  if [[ -n $dry_run ]]; then cat "$packed/gramjax.start"; fi
  rm -r "$packed"
}

case $action in
  start)
    if [[ -n $type ]]; then create; fi
    copy
    on_workers "$install"
    on_workers "$detach"
    on_workers "$follow" ;;
  follow) on_workers "$follow" ;;
  stop) on_workers "$stop" ;;
  delete) resource delete --force ;;
esac
