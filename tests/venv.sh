# Sourced by the two commands of the README: `make_venv EXTRA` makes .venv-EXTRA with this package and that extra, at the tested
# versions, and activates it. An environment that is complete is used as it is; one that changed underneath is brought up to date.
make_venv() {
    local extra=$1 python=${PYTHON:-python3} venv=.venv-$1 stamp
    stamp=$(cat pyproject.toml tests/constraints.txt | cksum)
    if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "Making the environment $venv (a minute or two the first time) ..."
        "$python" -m venv --clear "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint tests/constraints.txt --editable ".[$extra]"
        echo "$stamp" >"$venv/stamp"
    fi
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
}
