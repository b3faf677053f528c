#!/bin/sh
# Builds the sdist, and the wheel from it, and uses the wheel in an empty environment, outside of the repository.
# Usage: smoke.sh PYTHON, where PYTHON has the `build` package. Nothing is left in the repository.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
builder=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Runs a command, and shows what it printed only if it fails.
quietly() {
    "$@" > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
}

# From a copy: setuptools leaves build/ and *.egg-info beside what it builds, and reads an old one that it finds.
mkdir "$work/source"
cd "$root"
tar -cf "$work/source.tar" --exclude=__pycache__ --exclude='*.egg-info' \
    pyproject.toml README.md LICENSE CHANGELOG.md autorep_fx passes runtime models_zoo
tar -xf "$work/source.tar" -C "$work/source"

echo "sdist and wheel"
cd "$work"
quietly "$builder" -m build --outdir "$work/dist" "$work/source"

echo "wheel in an empty environment"
quietly "$builder" -m venv "$work/env"
quietly "$work/env/bin/python" -m pip install -qq --no-compile --disable-pip-version-check \
    -c "$root/constraints.txt" "$work"/dist/*.whl
"$work/env/bin/python" -I "$root/tests/packaging/smoke.py" "$work/source"
