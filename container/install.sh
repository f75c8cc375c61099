#!/usr/bin/env bash
# install.sh SOURCE FOLDER [EXTRAS]: install Isotorus from a clone into a virtual environment, with the tested
# versions, and check that its commands start. The Dockerfile runs it; it also works without containers.
#
#   container/install.sh . ~/isotorus s3,medical
#
# PYTHON   the Python to use (python3)
set -euo pipefail
if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: install.sh SOURCE FOLDER [EXTRAS]" >&2
    exit 2
fi
source=$1 folder=$2 extras=${3:-}
if [ ! -f "$source/constraints.txt" ]; then
    echo "error: $source has no constraints.txt; give the clone of Isotorus as the first argument" >&2
    exit 2
fi
if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: ${PYTHON:-python3} is older than Python 3.11; name another one by PYTHON=…" >&2
    exit 2
fi
# A folder that has an environment already keeps it.
[ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --no-cache-dir --constraint "$source/constraints.txt" "$source${extras:+[$extras]}"
for command in pack train eval launch; do
    (cd / && "$folder/bin/isotorus" "$command" --help >/dev/null)
done
echo "installed: $folder/bin/isotorus"
