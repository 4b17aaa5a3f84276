#!/usr/bin/env bash
# Three nodes and a director, each with a network of its own behind a bridge, one cable slow:
#   namespaces_test.sh TROUPE SLOW_WIRE
# They leave the same weights as one process. Then the cable of one node is pulled: all others stop
# and name it. Exits with 77, which CTest takes for a skip, where networks cannot be made.
set -euo pipefail

troupe=$1
slow_wire=$2
delay_ms=5 # Each way, as between two cities.
rate_mbit=20
queue_ms=50
heartbeat_ms=2000
slack_ms=2000

skip() { echo "skipped: $*"; exit 77; }

# Everything happens in namespaces of this script's own, so that nothing outlives it.
apart=(unshare --net --mount --pid --fork --kill-child --mount-proc)
[ "$(id -u)" = 0 ] || apart+=(--user --map-root-user)
if [ "${3:-}" != apart ]; then
  command -v ip >/dev/null || skip "ip of the package iproute2 is not there"
  command -v ping >/dev/null || skip "ping of the package iputils-ping is not there"
  [ -w /dev/net/tun ] || skip "/dev/net/tun is not there, or not for this user"
  refusal=$("${apart[@]}" mount -t tmpfs tmpfs /run 2>&1) || skip "no namespaces are granted: $refusal"
  exec "${apart[@]}" "$0" "$troupe" "$slow_wire" apart
fi

mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() { echo "failed: $*"; tail -n 5 "$folder"/*.said; exit 1; }
in_net() { nsenter --net="/run/netns/net$1" "${@:2}"; }
now_ms() { date +%s%3N; }

# A network for each process, at 10.77.0.1 and so on; the cable of node 2 is the slow one.
ip link add bridge type bridge 2>/dev/null || skip "this kernel has no bridge"
ip link set bridge up
"$slow_wire" port2 far2 "$delay_ms" "$rate_mbit" "$queue_ms" >"$folder/wire.said" 2>&1 &
wire=$!
until [ -s "$folder/wire.said" ]; do read -rt 0.02 <> <(:) || true; done
kill -0 "$wire" 2>/dev/null || fail "no slow wire"
for i in 0 1 2 3; do
  ip netns add "net$i"
  if [ "$i" = 2 ]; then
    ip link set far2 netns net2 name eth0
  else
    ip link add "port$i" type veth peer name eth0 netns "net$i" || skip "this kernel has no veth"
  fi
  ip link set "port$i" master bridge up
  in_net "$i" ip link set lo up
  in_net "$i" ip addr add "10.77.0.$((i + 1))/24" dev eth0
  in_net "$i" ip link set eth0 up
done

cat "$folder/wire.said"
# round_trip_us FROM TO: the shortest of five, in microseconds.
round_trip_us() {
  in_net "$1" ping -n -c 5 -i 0.05 "10.77.0.$(($2 + 1))" \
    | sed -n 's/^rtt min[^=]*= \([0-9]*\)\.\([0-9]\{3\}\).*/\1\2/p'
}
fast_us=$((10#$(round_trip_us 1 0)))
slow_us=$((10#$(round_trip_us 2 0)))
echo "round trips: $fast_us us over a fast cable, $slow_us us over the slow one"
[ "$slow_us" -ge $((2000 * delay_ms)) ] || fail "the slow cable is not slow"
[ "$fast_us" -lt $((2000 * delay_ms)) ] || fail "the fast cables are slow"
# 500 kB from node 2, from the first byte to the last as they arrive.
in_net 0 python3 -c '
import socket, time
peer = socket.create_server(("10.77.0.1", 7078)).accept()[0]
size, begin = len(peer.recv(1)), time.monotonic()
while block := peer.recv(65536): size += len(block)
print(round(size * 8e-3 / (time.monotonic() - begin)))' >"$folder/throughput" &
receiver=$!
until in_net 2 bash -c 'head -c 500000 /dev/zero >/dev/tcp/10.77.0.1/7078' 2>/dev/null; do
  kill -0 "$receiver" || fail "nobody measures the throughput"
done
wait "$receiver"
throughput_kbit=$(cat "$folder/throughput")
echo "throughput over the slow cable: $throughput_kbit kbit/s"
[ "$throughput_kbit" -le $((1000 * rate_mbit)) ] || fail "the slow cable is too fast"

cd "$folder"
umask 077
echo a-secret-that-nobody-guesses >secret
for _ in $(seq 400); do printf 'In the beginning was the word. '; done >corpus.txt
# An activation has 32 KiB, which takes the slow cable 13 ms.
cat >run.toml <<'END'
[model]
layers = 3
heads = 2
hidden = 64
sequence = 32
[parallel]
pipeline = 3
[schedule]
name = "1f1b"
microbatches = 4
microbatch_size = 4
[train]
steps = 6
warmup_steps = 2
[data]
text = "corpus.txt"
[run]
threads_per_stage = 1
END

network="--interface eth0 --heartbeat $((heartbeat_ms / 1000)) --secret secret"
network+=" --no-shared-memory" # One machine plays several.
# start NAME KEY=VALUE...: the director is the process $director, the nodes are ${nodes[1..3]}; what
# they say is in NAME.*.said.
start() {
  # shellcheck disable=SC2086 # One word per option.
  nsenter --net=/run/netns/net0 "$troupe" train run.toml --nodes 3 --listen 10.77.0.1:7077 $network \
    --set "${@:2}" >"$1.0.said" 2>&1 &
  director=$!
  for i in 1 2 3; do
    # shellcheck disable=SC2086
    nsenter --net="/run/netns/net$i" "$troupe" node --join 10.77.0.1:7077 $network >"$1.$i.said" 2>&1 &
    nodes[i]=$!
  done
}
nodes=()

"$troupe" train run.toml --set run.output=one >one.said 2>&1 || fail "one process"
begun_ms=$(now_ms)
start several run.output=several
for pid in "$director" "${nodes[@]}"; do wait "$pid" || fail "a process of the run"; done
cmp one/weights.safetensors several/weights.safetensors || fail "other weights"
echo "the same weights as of one process, after $(($(now_ms) - begun_ms)) ms"

start cut run.output=cut train.steps=1000000
until sed -n 4p cut/metrics.jsonl 2>/dev/null | grep -q .; do
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
for i in 0 1 3; do
  tail -n 1 "cut.$i.said"
  grep -q "^troupe: node .* is lost" "cut.$i.said" || fail "process $i does not say who is lost"
done
grep -q "^troupe: the director is lost" cut.2.said || fail "the node that was cut off says nothing"
grep -q "(process ${nodes[2]} " cut.0.said || fail "another node than the one cut off is named"
[ "$took_ms" -le $((heartbeat_ms + 1000 + slack_ms)) ] || fail "it took $took_ms ms"
