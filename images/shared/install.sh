#!/bin/sh
# Installs the locked packages, or our wheel, into an environment: the same steps in every image of ours.
#
#   install.sh requirements FILE UV-OPTION...   exactly what FILE pins, by its hashes, from wheels only
#   install.sh wheel FILE UV-OPTION...          our wheel alone; its dependencies are there already
#   install.sh checked FILE UV-OPTION...        our wheel; fails when what is there is not what the supervisor needs
#
# A certificate authority or a package index of the building machine comes as a build secret, so neither stays in a layer.
set -eu

secrets=/run/secrets
if [ -s "$secrets/ca_bundle" ]; then
    export SSL_CERT_FILE="$secrets/ca_bundle"
fi
if [ -s "$secrets/index_url" ]; then
    UV_DEFAULT_INDEX=$(cat "$secrets/index_url")
    export UV_DEFAULT_INDEX
fi
# No cache in a layer; the machine's Python, never a downloaded one; bytecode that is valid whatever a file's time is.
export UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=hardlink UV_NO_PROGRESS=1
export PYC_INVALIDATION_MODE=UNCHECKED_HASH
# One compiler process: bytecode depends on what its process has compiled before.
export UV_CONCURRENT_INSTALLS=1

kind=$1 file=$2
shift 2
uv=$(dirname "$0")/uv
case $kind in
requirements) exec "$uv" pip install --no-deps --no-build --require-hashes --requirements "$file" "$@" ;;
wheel) exec "$uv" pip install --no-deps --no-build --offline "$@" "$file" ;;
checked) exec "$uv" pip install --no-build --offline "$@" "hanmaru[supervisor] @ file://$file" ;;
*)
    echo "install.sh: not 'requirements', 'wheel' or 'checked': $kind" >&2
    exit 2
    ;;
esac
