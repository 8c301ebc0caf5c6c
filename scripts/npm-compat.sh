#!/bin/sh
# Checks that unmodified npm clients work with our daemon: installs agent-relay 1.6.0 under target/ and drives its
# RelayClient and its command line against the given binary.
#
#   scripts/npm-compat.sh [BINARY]        default: target/release/relay
#   scripts/npm-compat.sh --reference     against the npm package's own daemon: checks the checks
#   scripts/npm-compat.sh --record        records tests/transcripts anew
#
# RELAY_UP_ARGS: how the daemon is started, "up --cores 2" unless set. Needs node 20, npm, and for the package's native
# parts (its command line loads node-pty, its daemon better-sqlite3) make, python3 and a C++ compiler.
set -eu
cd "$(dirname "$0")/.."
version=1.6.0
cache="$PWD/target/npm-compat/$version"
package="$cache/node_modules/agent-relay"

if [ ! -e "$cache/ready" ]; then
    mkdir -p "$cache"
    echo '{"private":true}' > "$cache/package.json"
    # No install scripts run; the two native modules that are needed are then built by name.
    npm install --prefix "$cache" --ignore-scripts --no-save "agent-relay@$version" >&2
    gyp="$(npm root -g)/npm/node_modules/node-gyp/bin/node-gyp.js"
    nodedir="$(dirname "$(dirname "$(command -v node)")")"
    [ -e "$nodedir/include/node/node.h" ] && headers="--nodedir=$nodedir" || headers=""
    for module in node-pty better-sqlite3; do
        # shellcheck disable=SC2086 # no headers: no argument
        (cd "$cache/node_modules/$module" && node "$gyp" rebuild --release $headers >"$cache/$module.log" 2>&1) || {
            echo "building $module failed; see $cache/$module.log" >&2
            exit 1
        }
    done
    touch "$cache/ready"
fi

case "${1:-}" in
    --record) exec node scripts/npm-compat/record.mjs "$package" "$PWD/tests/transcripts" ;;
    --reference) exec node scripts/npm-compat/checks.mjs "$package" ;;
esac
binary="$(realpath "${1:-target/release/relay}")"
[ -x "$binary" ] || { echo "no such program: $binary (cargo build --release)" >&2; exit 2; }
exec node scripts/npm-compat/checks.mjs "$package" "$binary"
