#!/usr/bin/env bash
# Three nodes and a director, each with a network of its own behind a bridge, one link slow:
#   namespaces_test.sh TROUPE
# They leave the same weights as one process. Then the cable of one node is pulled: all others stop
# and name it. Exits with 77, which CTest takes for a skip, where networks cannot be made.
set -euo pipefail

troupe=$1
tag=tr$$
folder=$(mktemp -d)
heartbeat_ms=2000
slack_ms=2000

remove() {
  local i
  for i in 0 1 2 3; do
    ip netns pids "$tag-$i" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
    ip netns del "$tag-$i" 2>/dev/null || true
  done
  ip link del "$tag" 2>/dev/null || true
  rm -rf "$folder"
}
trap remove EXIT

skip() { echo "skipped: $*"; exit 77; }
fail() { echo "failed: $*"; tail -n 5 "$folder"/*.said; exit 1; }
in_net() { ip netns exec "$tag-$1" "${@:2}"; }
now_ms() { date +%s%3N; }

command -v ip tc >/dev/null || skip "ip and tc of iproute2 are not there"
ip netns add "$tag-0" 2>/dev/null || skip "network namespaces need root or CAP_NET_ADMIN"
ip link add "$tag" type bridge 2>/dev/null || skip "this kernel has no bridge"
ip link set "$tag" up
for i in 0 1 2 3; do
  [ "$i" = 0 ] || ip netns add "$tag-$i"
  ip link add "$tag.$i" type veth peer name eth0 netns "$tag-$i" || skip "this kernel has no veth"
  ip link set "$tag.$i" master "$tag" up
  in_net "$i" ip link set lo up
  in_net "$i" ip addr add "10.77.0.$((i + 1))/24" dev eth0
  in_net "$i" ip link set eth0 up
done
in_net 2 tc qdisc add dev eth0 root netem delay 2ms rate 100mbit 2>/dev/null \
  || in_net 2 tc qdisc add dev eth0 root tbf rate 20mbit burst 16kb latency 50ms 2>/dev/null \
  || echo "this kernel has neither netem nor tbf: all links are fast"

cd "$folder"
umask 077
echo a-secret-that-nobody-guesses >secret
for _ in $(seq 400); do printf 'In the beginning was the word. '; done >corpus.txt
cat >run.toml <<'END'
[model]
layers = 3
heads = 2
hidden = 16
sequence = 16
[parallel]
pipeline = 3
[schedule]
name = "1f1b"
microbatches = 4
microbatch_size = 2
[train]
steps = 6
warmup_steps = 2
[data]
text = "corpus.txt"
[run]
threads_per_stage = 1
END

network="--interface eth0 --heartbeat $((heartbeat_ms / 1000)) --secret secret"
network+=" --no-shared-memory"  # One machine plays several.
# start NAME: the director as $director, the nodes as ${nodes[1..3]}; what they say in NAME.*.said.
start() {
  in_net 0 "$troupe" train run.toml --nodes 3 --listen 10.77.0.1:7077 $network \
    --set "${@:2}" >"$1.0.said" 2>&1 &
  director=$!
  for i in 1 2 3; do
    in_net "$i" "$troupe" node --join 10.77.0.1:7077 $network >"$1.$i.said" 2>&1 &
    nodes[i]=$!
  done
}
nodes=()

"$troupe" train run.toml --set run.output=one >one.said 2>&1 || fail "one process"
start several run.output=several
for pid in "$director" "${nodes[@]}"; do wait "$pid" || fail "a process of the run"; done
cmp one/weights.safetensors several/weights.safetensors || fail "other weights"
echo "the same weights as of one process"

start cut run.output=cut train.steps=1000000
until [ "$(cat cut/metrics.jsonl 2>/dev/null | wc -l)" -gt 3 ]; do
  kill -0 "$director" || fail "the run did not begin"
  read -rt 0.02 <> <(:) || true
done
in_net 2 ip link set eth0 down
cut_ms=$(now_ms)
for pid in "$director" "${nodes[1]}" "${nodes[2]}" "${nodes[3]}"; do
  wait "$pid" && fail "a process takes a cut network for success"
  echo "ended after $(($(now_ms) - cut_ms)) ms"
done
took_ms=$(($(now_ms) - cut_ms))
lost=$(grep -o 'node [0-9]* (process [0-9]*' cut.0.said | tail -n 1)
for i in 0 1 3; do
  tail -n 1 "cut.$i.said"
  grep -q "^troupe: node .* is lost" "cut.$i.said" || fail "process $i does not say who is lost"
done
grep -q "^troupe: the director is lost" cut.2.said || fail "the node that was cut off says nothing"
[ -n "$lost" ] || fail "no node is named"
[ "$took_ms" -le $((heartbeat_ms + 1000 + slack_ms)) ] || fail "it took $took_ms ms"
