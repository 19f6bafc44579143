//! Strangers at every socket of a running job: nobody notices.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;
use std::time::{Duration, Instant};

use ringtree_tests::job::{Host, Job, PATIENCE, identity};
use ringtree_tests::sockets::{tcp_listeners, unix_listeners};
use ringtree_transport::rendezvous::StoreClient;

use crate::setup;

#[test]
fn a_port_scan_garbage_silence_and_a_replay_disturb_nobody() {
    for (transport, host) in
        [("tcp", Host::Launcher), ("tcp", Host::RankZero), ("auto", Host::Launcher)]
    {
        let mut job =
            Job::start(&setup(3, transport).host(host), |_| "warm-up; stream 1000".into());
        job.expect_all(0..3, "running");
        let pids: Vec<u32> = (0..3).map(|member| job.pid(member)).collect();
        let mut tcp: Vec<_> = pids.iter().flat_map(|pid| tcp_listeners(*pid)).collect();
        assert!(tcp.len() >= 3, "each rank listens: {tcp:?}");
        let unix: Vec<_> = pids.iter().flat_map(|pid| unix_listeners(*pid)).collect();
        assert_eq!(unix.len(), if transport == "tcp" { 0 } else { 3 }, "{unix:?}");
        let genuine = record(job.rendezvous());
        tcp.push(job.rendezvous());

        let held: Vec<_> = tcp.iter().flat_map(|address| disturb(*address, &genuine)).collect();
        let held_unix: Vec<_> = unix.iter().flat_map(|name| disturb_unix(name)).collect();
        job.go_on(0);
        for member in 0..3 {
            job.expect(member, "done");
            assert!(job.end(member).success(), "{job}");
        }
        drop((held, held_unix));
    }
}

/// Everything that strangers do; returns connections that stay open and say nothing, or not enough.
fn disturb(address: SocketAddr, genuine: &[u8]) -> Vec<TcpStream> {
    let connect = || TcpStream::connect(address).expect("somebody listens");
    let mut held = Vec::new();
    for turn in 0..20_u8 {
        drop(connect());
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[turn; 3000], &[0xff; 64], &genuine[..40]] {
            // It may be closed before everything is written.
            let _ = connect().write_all(bytes);
        }
        let mut half = connect();
        let _ = half.write_all(&genuine[..usize::from(turn).min(genuine.len())]);
        held.push(half);
    }
    replay(connect(), genuine);
    held
}

fn disturb_unix(name: &str) -> Vec<net::UnixStream> {
    let address = net::SocketAddr::from_abstract_name(name).expect("a name");
    let connect = || net::UnixStream::connect_addr(&address).expect("somebody listens");
    for turn in 0..20_u8 {
        drop(connect());
        let _ = connect().write_all(&[turn; 3000]);
    }
    (0..10).map(|_| connect()).collect()
}

/// What a rank says to the rendezvous when it joins and asks: a proxy between them listens.
fn record(rendezvous: SocketAddr) -> Vec<u8> {
    let proxy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = proxy.local_addr().expect("an address").to_string();
    std::thread::scope(|scope| {
        let recorded = scope.spawn(move || {
            let (mut client, _) = proxy.accept().expect("the client comes");
            let mut server = TcpStream::connect(rendezvous).expect("the rendezvous is there");
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let back = std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let mut recorded = Vec::new();
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = client.read(&mut bytes) {
                recorded.extend_from_slice(&bytes[..count]);
                server.write_all(&bytes[..count]).expect("the rendezvous reads");
            }
            let _ = server.shutdown(Shutdown::Both);
            let _ = back.join();
            recorded
        });
        let client = StoreClient::connect(&address, &identity(), Instant::now() + PATIENCE);
        let store = ringtree_transport::rendezvous::Store::Tcp(client.expect("a proven client"));
        store.set("recorded", b"once", Instant::now() + PATIENCE).expect("an answer");
        drop(store);
        recorded.join().expect("the proxy ends")
    })
}

/// Says again what somebody else said. Nobody may take it for granted: the connection is closed
/// before the second answer.
fn replay(mut stream: TcpStream, genuine: &[u8]) {
    let _ = stream.write_all(genuine);
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it stays open"),
    }
}
