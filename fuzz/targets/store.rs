//! What somebody who has the job's secret asks the store: any messages, each behind its length in a byte. Another one
//! is served afterwards.
#![no_main]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use ringtree_transport::rendezvous::{Server, Store, StoreClient, connect};
use ringtree_transport::secure::{Job, Purpose, Secret};

/// A request begins with the time that it may wait, in milliseconds: here none does.
const WAIT_BYTES: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let job = Job { name: "fuzzing".into(), secret: Secret::from_text("of all") };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = Server::start(listener, job.clone(), |_, _| {}).expect("a server");
    let address = server.address().to_string();
    let deadline = Instant::now() + Duration::from_secs(5);

    let stream = connect(&address, &job, Purpose::Store, b"", deadline).expect("a connection");
    let (mut sender, mut receiver) = stream.split();
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first() {
        let (request, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        let request = [&[0; WAIT_BYTES], request].concat();
        // Who asks what is no request is cut off.
        if sender.send(&request, deadline).is_err() || receiver.receive(deadline).is_err() {
            break;
        }
    }

    let client = StoreClient::connect(&address, &job, deadline).expect("another connection");
    let store = Store::Tcp(client);
    store.set("key of the other", b"value", deadline).expect("it is set");
    assert_eq!(store.get("key of the other", deadline).expect("it was set"), b"value");
});
