"""A stand-in for python on a site: everything but the agent is the real one, and the agent does what it is told."""

import sys
from pathlib import Path

_SCRIPT = """\
#!/usr/bin/env bash
# BEHAVIOUR: wait (until told to stop; ends at once when it is started again), lose (its node, once), refuse, stay.
if [[ "$*" == *isthmus.launch.snapshot* && -n "{versions}" ]]; then
    echo '{versions}'
    exit 0
fi
if [[ "$*" != *isthmus.launch.node* ]]; then
    exec {python} "$@"
fi
for word; do
    case "$word" in
    --config=*) files="$(dirname "${{word#--config=}}")" ;;
    --launch-id=*) launch="${{word#--launch-id=}}" ;;
    esac
done
again="${{SLURM_RESTART_COUNT:-0}}"
echo "${{SLURM_PROCID:-0}} ${{SLURM_NTASKS:-1}} ${{SLURMD_NODENAME:-}} $again ${{OMP_NUM_THREADS:-}}" >>"$files/calls"
case "$BEHAVIOUR" in
refuse)
    echo "isthmus: train.device=cuda: there is no CUDA device here" >&2
    exit 2
    ;;
lose)
    [[ -e "$files/job" ]] && exit 0
    [[ "$SLURM_PROCID" == 0 ]] || sleep 60
    # Agents meet before one can be lost; a step that ends sooner would kill the other task before it has called.
    until (( $(wc -l <"$files/calls") >= ${{SLURM_NTASKS:-1}} )); do sleep 0.1; done
    echo n2 >"$files/excluded"
    echo 84 >"$files/exit" # the other task is killed, with a higher code
    exit 84
    ;;
wait) [[ "$again" != 0 ]] && exit 0 ;;
esac
trap 'exit 85' TERM USR2
echo "{{\\"launch\\": \\"$launch\\"}}" >"$files/node-0.json"
echo $$ >"$files/process"
for _ in $(seq 600); do sleep 0.1; done
"""


def stand_in(folder: Path, versions: str = "") -> Path:
    """Write the script and return it."""
    path = folder / f"python-{abs(hash(versions)) % 1000}"
    path.write_text(_SCRIPT.format(python=sys.executable, versions=versions))
    path.chmod(0o755)
    return path
