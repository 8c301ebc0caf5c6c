#!/bin/sh
# Makes an offline enterprise licence for evaluation builds: scripts/evaluation-licence.sh [FILE] [DAYS].
# Without FILE it is printed. `relay license activate FILE`, or AGENT_RELAY_LICENSE_KEY="$(scripts/evaluation-licence.sh)".
# A build that carries the vendor's key does not believe it. RELAY_LICENSE_TOOL names the relay-license to use.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tool=${RELAY_LICENSE_TOOL:-$here/../target/release/relay-license}
if [ ! -x "$tool" ]; then
    echo "evaluation-licence.sh: there is no $tool; cargo build --release --bin relay-license, or set RELAY_LICENSE_TOOL" >&2
    exit 1
fi
registry=$(mktemp -d)
trap 'rm -rf "$registry"' EXIT
key=$registry/evaluation.key
# A checkout may have given it any mode.
install -m 600 "$here/evaluation.key" "$key"
set -- "${1:-}" "${2:-365}"
if [ -n "$1" ]; then
    "$tool" issue --tier enterprise --days "$2" --offline --signing-key "$key" --db "$registry/db" --output "$1"
else
    "$tool" issue --tier enterprise --days "$2" --offline --signing-key "$key" --db "$registry/db"
fi
