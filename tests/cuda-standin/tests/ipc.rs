//! Legacy IPC, and descriptors of virtual memory, between two processes.

mod common;
use common::*;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Stdio};

/// The other process, which is told on its standard input, and answers on its standard output.
struct Other(Child, BufReader<std::process::ChildStdout>);

impl Other {
    fn start(name: &str) -> Other {
        Other::start_with(name, &[("HOLD_MS", "60000")])
    }

    fn start_with(name: &str, settings: &[(&str, &str)]) -> Other {
        let mut command = process(name, settings);
        command.env("STANDIN_TEST_OTHER", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Other(child, answers)
    }

    fn tell(&mut self, words: &[u64]) {
        let words: Vec<_> = words.iter().map(u64::to_string).collect();
        writeln!(self.0.stdin.as_mut().unwrap(), "{}", words.join(" ")).unwrap();
    }

    fn hear(&mut self) -> Vec<u64> {
        hear(&mut self.1)
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

/// The next line of numbers; the test harness writes others.
fn hear(from: &mut impl BufRead) -> Vec<u64> {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(from.read_line(&mut line).unwrap() > 0, "the other process ended");
        let line = line.trim().strip_prefix("say ").unwrap_or(line.trim());
        let words: Option<Vec<u64>> = line.split(' ').map(|word| word.parse().ok()).collect();
        if let Some(words) = words {
            return words;
        }
    }
}

fn say(words: &[u64]) {
    let words: Vec<_> = words.iter().map(u64::to_string).collect();
    println!("\nsay {}", words.join(" "));
    std::io::stdout().flush().unwrap();
}

fn is_other(name: &str) -> bool {
    std::env::var_os("STANDIN_TEST_OTHER").is_some() && inside(name)
}

fn handle(words: &[u64]) -> Passed {
    Passed(words[..8].try_into().unwrap())
}

#[test]
fn another_process_opens_memory() {
    const NAME: &str = "another_process_opens_memory";
    if is_other(NAME) {
        use_device(1);
        let input = &mut std::io::stdin().lock();
        let told = hear(input);
        let mut address = 0;
        ok(cuIpcOpenMemHandle_v2(&mut address, handle(&told), 1));
        let again = get(|to| cuIpcOpenMemHandle_v2(to, handle(&told), 1));
        assert_eq!(again, address, "opened twice it is the same");
        assert_eq!(counters().ipc_handles_open, 1);
        assert_eq!(download(address, 3000), vec![7; 3000]);
        let mut byte = 0;
        assert_eq!(cuMemcpyDtoH_v2(&mut byte, address, 3001), INVALID_VALUE);
        // By a kernel, over the link to the memory's home.
        let local = allocate(64);
        ok(cuMemsetD8_v2(local, 9, 64));
        ok(launch(function_of(KERNELS, "copy"), 1, 1, 0, &[address, local]));
        ok(cuCtxSynchronize());
        assert_eq!(counters().links[1][0].written_bytes, 4);
        // What was opened is neither freed nor passed on.
        assert_eq!(cuMemFree_v2(address), INVALID_VALUE);
        assert_eq!(cuIpcGetMemHandle(&mut [0; 8], address), INVALID_VALUE);
        assert_eq!(cuIpcCloseMemHandle(local), INVALID_VALUE);
        ok(cuIpcCloseMemHandle(address));
        ok(cuMemcpyDtoH_v2(&mut byte, address, 1));
        ok(cuIpcCloseMemHandle(address));
        assert_eq!(cuIpcCloseMemHandle(address), INVALID_VALUE);
        assert_eq!(cuMemcpyDtoH_v2(&mut byte, address, 1), INVALID_VALUE);
        assert_eq!(counters().ipc_handles_open, 0);
        say(&[1]);
        // The exporter has freed it.
        hear(input);
        assert_eq!(cuIpcOpenMemHandle_v2(&mut address, handle(&told), 1), INVALID_HANDLE);
        let mut wrong = told.clone();
        wrong[0] += 1;
        assert_eq!(cuIpcOpenMemHandle_v2(&mut address, handle(&wrong), 1), INVALID_VALUE);
        // A process that is not there.
        wrong = told;
        wrong[1] = 0x7fff_0000;
        assert_eq!(cuIpcOpenMemHandle_v2(&mut address, handle(&wrong), 1), INVALID_HANDLE);
        return;
    }
    isolated(NAME, &[], || {
        use_device(0);
        let address = allocate(3000);
        upload(address, &[7; 3000]);
        let words = get(|to: &mut Handle64| cuIpcGetMemHandle(to, address + 100));
        // In the same process it is used as it is.
        assert_eq!(cuIpcOpenMemHandle_v2(&mut 0, Passed(words), 1), INVALID_CONTEXT);
        let pool = get(|to| cuMemAllocAsync(to, 4096, 0));
        assert_eq!(cuIpcGetMemHandle(&mut [0; 8], pool), INVALID_VALUE);
        let mut other = Other::start(NAME);
        other.tell(&words);
        other.hear();
        assert_eq!(download(address, 5), [9, 9, 9, 9, 7]);
        ok(cuMemFree_v2(address));
        // Other memory, which gets the descriptor of what was freed.
        let next = allocate(3000);
        assert_eq!(get(|to: &mut Handle64| cuIpcGetMemHandle(to, next))[2], words[2]);
        other.tell(&[1]);
        other.end();
        ok(configure("NO_IPC", "1"));
        assert_eq!(cuIpcGetMemHandle(&mut [0; 8], address), NOT_SUPPORTED);
    });
}

#[test]
fn another_process_is_refused_as_between_containers() {
    const NAME: &str = "another_process_is_refused_as_between_containers";
    if is_other(NAME) {
        use_device(0);
        let input = &mut std::io::stdin().lock();
        let told = hear(input);
        let mut address = 0;
        assert_eq!(cuIpcOpenMemHandle_v2(&mut address, handle(&told), 1), INVALID_VALUE);
        ok(configure("NO_IPC", "0"));
        ok(cuIpcOpenMemHandle_v2(&mut address, handle(&told), 1));
        return;
    }
    isolated(NAME, &[], || {
        use_device(0);
        let address = allocate(3000);
        // It has a handle all the same.
        ok(configure("NO_IPC", "open"));
        let words = get(|to: &mut Handle64| cuIpcGetMemHandle(to, address));
        let mut other = Other::start_with(NAME, &[("HOLD_MS", "60000"), ("NO_IPC", "open")]);
        other.tell(&words);
        other.end();
    });
}

#[test]
fn another_process_waits_for_an_event() {
    const NAME: &str = "another_process_waits_for_an_event";
    if is_other(NAME) {
        use_device(0);
        let input = &mut std::io::stdin().lock();
        let told = hear(input);
        let memory = get(|to| cuIpcOpenMemHandle_v2(to, handle(&told), 1));
        let event = get(|to| cuIpcOpenEventHandle(to, handle(&told[8..])));
        let (stream, host) = (stream(), pinned(64));
        for round in 1..=20 {
            // It was recorded; nothing there waits for it but this wait here.
            ok(cuStreamWaitEvent(stream, event, 0));
            ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), memory, 64, stream));
            ok(cuStreamSynchronize(stream));
            assert_eq!(host, [round; 64]);
            say(&[round as u64]);
            hear(input);
        }
        // This process records it, the other waits.
        ok(cuMemsetD8Async(memory, 99, 64, stream));
        ok(cuEventRecord(event, stream));
        say(&[99]);
        hear(input);
        ok(cuEventDestroy_v2(event));
        ok(cuIpcCloseMemHandle(memory));
        assert_eq!(counters().ipc_handles_open, 0);
        return;
    }
    isolated(NAME, &[("HOLD_MS", "60000")], || {
        use_device(0);
        let (memory, stream) = (allocate(64), stream());
        let event = get(|to| cuEventCreate(to, 2 | 4));
        let words = get(|to: &mut Handle64| cuIpcGetMemHandle(to, memory));
        let event_words = get(|to: &mut Handle64| cuIpcGetEventHandle(to, event));
        assert_eq!(cuIpcGetEventHandle(&mut [0; 8], common::event()), INVALID_HANDLE);
        assert_eq!(cuIpcOpenEventHandle(&mut 0, Passed(event_words)), INVALID_CONTEXT);
        let mut other = Other::start(NAME);
        for round in 1..=20 {
            ok(cuMemsetD8Async(memory, round, 64, stream));
            ok(cuEventRecord(event, stream));
            assert_eq!(counters().memsets.count, round as u64 - 1);
            if round == 1 {
                other.tell(&[words, event_words].concat());
            } else {
                other.tell(&[0]);
            }
            assert_eq!(other.hear(), [round as u64]);
        }
        other.tell(&[0]);
        assert_eq!(other.hear(), [99]);
        ok(cuEventSynchronize(event));
        ok(cuStreamWaitEvent(stream, event, 0));
        ok(cuStreamSynchronize(stream));
        assert_eq!(download(memory, 64), [99; 64]);
        other.tell(&[0]);
        other.end();
    });
}

#[test]
fn another_process_maps_a_descriptor() {
    const NAME: &str = "another_process_maps_a_descriptor";
    const UNIT: usize = 2 << 20;
    const BY_FIRST: AccessDescription = AccessDescription { location: [1, 0], flags: 3 };
    let map = |handle| {
        let base = get(|to| cuMemAddressReserve(to, UNIT, 0, 0, 0));
        ok(cuMemMap(base, UNIT, 0, handle, 0));
        ok(cuMemSetAccess(base, UNIT, &BY_FIRST, 1));
        base
    };
    if is_other(NAME) {
        use_device(0);
        let input = &mut std::io::stdin().lock();
        let told = hear(input);
        // As a test may; programs pass descriptors over sockets.
        let path = format!("/proc/{}/fd/{}", told[0], told[1]);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let handle = get(|to| cuMemImportFromShareableHandle(to, file.as_raw_fd() as usize, 1));
        drop(file);
        let base = map(handle);
        assert_eq!(download(base, 4), [4; 4]);
        upload(base, &[5; 4]);
        say(&[1]);
        hear(input);
        return;
    }
    isolated(NAME, &[], || {
        use_device(0);
        let properties =
            Properties { kind: 1, handle_types: 1, location: [1, 0], ..Default::default() };
        let memory = get(|to| cuMemCreate(to, UNIT, &properties, 0));
        let base = map(memory);
        upload(base, &[4; 4]);
        let descriptor = get(|to| cuMemExportToShareableHandle(to, memory, 1, 0));
        // SAFETY: the descriptor is this test's.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let mut other = Other::start(NAME);
        other.tell(&[std::process::id() as u64, descriptor.as_raw_fd() as u64]);
        other.hear();
        assert_eq!(download(base, 4), [5; 4]);
        other.tell(&[0]);
        other.end();
    });
}
