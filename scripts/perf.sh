#!/bin/sh
# Installs the peers where they are missing, builds, measures, writes perf/RESULTS.md. Arguments go to `relay-perf run`.
set -eu
cd "$(dirname "$0")/.."
for program in redis-server:redis-server nats-server:nats-server mosquitto:mosquitto nodejs:node npm:npm; do
    PATH="$PATH:/usr/sbin" command -v "${program#*:}" >/dev/null || missing="${missing:-} ${program%:*}"
done
if [ -n "${missing:-}" ]; then
    # shellcheck disable=SC2086 # a list of package names
    apt-get install -y --no-install-recommends $missing
fi
target="${CARGO_TARGET_DIR:-target}"
package="$target/agent-relay/node_modules/agent-relay"
if [ ! -d "$package" ]; then
    npm install --prefix "$target/agent-relay" --ignore-scripts --no-audit --no-fund agent-relay@1.6.0
fi
cargo build --release -p agent-relay -p relay-perf
exec "$target/release/relay-perf" run --agent-relay "$package" "$@"
