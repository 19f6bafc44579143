#!/usr/bin/env bash
# Plants faults in a copy of the code that moves buffers of GPUs, and sees whether the tests notice them: each in at
# least 95 % of RUNS runs (10). The tests run on the stand-in for the CUDA driver, under its adversarial schedule. Without
# a fault, the same programs must pass in all of RIGHT_RUNS runs (as many for each fault).
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${RUNS:-10}
right_runs=${RIGHT_RUNS:-$((runs * 11))}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
copy=$target/planted
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$copy"
cd "$copy"

# plant NAME FILE TEXT REPLACEMENT: where RINGTREE_PLANTED is NAME, PLANTED in the replacement is true.
plant() {
    python3 - "$@" <<'PYTHON'
import sys
name, path, line, replacement = sys.argv[1:]
text = open(path).read()
if text.count(line) != 1:
    sys.exit(f"{path} must have once, and has {text.count(line)} times: {line}")
is_planted = f'(std::env::var("RINGTREE_PLANTED").as_deref() == Ok("{name}"))'
open(path, "w").write(text.replace(line, replacement.replace("PLANTED", is_planted)))
PYTHON
}
staged=collectives/src/executor/staged
# Nobody waits for what the stream does before the call.
plant ready collectives/src/engine/device.rs 'self.await_device(ready)?;' \
    'if !PLANTED { self.await_device(ready)?; }'
# What the GPU is still writing is sent, and what it is still reading is given back.
plant unfinished $staged/mod.rs '&& gear.lane(lane).event.is_done().map_err(Fault::Device)?' \
    '&& (PLANTED || gear.lane(lane).event.is_done().map_err(Fault::Device)?)'
plant unfinished $staged/sending.rs 'if !gear.lane(lane).copy_events[copy.event].is_done()' \
    'if !PLANTED && !gear.lane(lane).copy_events[copy.event].is_done()'
# The stream goes on before the call is done.
plant early collectives/src/device/calls.rs 'let (rank, ranks) = (engine.rank(), engine.ranks());
    let blocks' 'if PLANTED { job.done.say(&Ok(())); }
    let (rank, ranks) = (engine.rank(), engine.ranks());
    let blocks'
# A call is over although a peer still reads this rank's memory.
plant lent $staged/mod.rs 'unsent.or_else(|| lane.counter.unsent(links))' \
    'unsent.or_else(|| if PLANTED { None } else { lane.counter.unsent(links) })'
plant lent $staged/mod.rs 'reader.or(waiting)' 'reader.or(if PLANTED { None } else { waiting })'
# A message is written to where the kernel still reads that of the round before.
plant crowded $staged/landing.rs 'usize::from(self.lanes[lane].counter.is_odd(round))' \
    'if PLANTED { 0 } else { usize::from(self.lanes[lane].counter.is_odd(round)) }'
# A piece that a peer is to read is filled again.
plant recycled $staged/pieces.rs '(Some(end), Some(sent_bytes)) => sent_bytes < end,' \
    '(Some(end), Some(sent_bytes)) => sent_bytes < end && !PLANTED,'
# A kernel's flag may overtake what it has put into its slot.
plant unfenced collectives/src/device/kernels.rs 'Module::load(&self.device, ptx(data_type))' \
    'Module::load(&self.device, &if PLANTED { ptx(data_type).replace("st.release.sys", "st.relaxed.sys") } else {
        ptx(data_type).to_owned()
    })'
# A kernel does not wait for one of the others.
plant unheard collectives/src/device/kernels.rs 'rank: exchange.rank,' \
    'rank: if PLANTED { (exchange.rank + 1) % boards.len() as u32 } else { exchange.rank },'
# A board has one place, which is written again while others read it.
plant reused collectives/src/device/board.rs '(number & 1) as usize' \
    '(if PLANTED { 0 } else { number & 1 }) as usize'
# Flags stay as they were.
plant stuck collectives/src/device/board.rs 'state.number = number;' 'if !PLANTED { state.number = number; }'

CARGO_TARGET_DIR=$target cargo test --quiet --locked -p ringtree-tests --test gpu --test gpu_small --test gpu_rdma --test gpu_foreign --no-run
program() { # program NAME: the newest of the tests of this name
    find "$target/debug/deps" -name "$1-*" -type f -executable -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2
}

# Says how many of some runs of a test fail.
failures() { # failures RUNS PLANTED TEST PROGRAM
    local failed=0
    for _ in $(seq "$1"); do
        RINGTREE_PLANTED=$2 timeout 150 "$4" --exact "$3" >/dev/null 2>&1 || failed=$((failed + 1))
    done
    echo "$failed"
}
status=0
tests=()
check() { # check PLANTED TEST [NAME]
    local noticed program
    program=$(program "${3:-gpu}")
    tests+=("$2 $program")
    noticed=$(failures "$runs" "$1" "$2" "$program")
    echo "$1: noticed in $noticed of $runs runs by $2"
    [ $((noticed * 100)) -ge $((runs * 95)) ] || status=1
}
cd tests
check ready a_call_begins_when_its_stream_has_come_to_it
check unfinished every_algorithm_runs_on_gpus
check unfinished rdma_devices_send_from_the_memory_of_gpus_and_nothing_is_copied_first gpu_rdma
check crowded what_is_reduced_arrives_in_the_memory_of_the_gpu gpu_rdma
check early a_call_begins_when_its_stream_has_come_to_it
check lent memory_that_is_lent_stays_as_it_is_until_it_has_been_read
check recycled foreign_memory_is_read_as_often_as_other_memory gpu_foreign
for fault in unfenced unheard reused stuck; do
    check "$fault" small_calls_in_a_row gpu_small
done
# Each test in turn, for as many of the runs as it has faults.
for at in "${!tests[@]}"; do
    read -r test program <<<"${tests[$at]}"
    share=$(((right_runs * (at + 1)) / ${#tests[@]} - (right_runs * at) / ${#tests[@]}))
    failed=$(failures "$share" none "$test" "$program")
    echo "none: $failed of $share runs of $test failed"
    [ "$failed" = 0 ] || status=1
done
exit $status
