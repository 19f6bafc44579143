//! Shared helpers of the criterion benchmarks in this folder.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringtree_transport::Link;
use ringtree_transport::shm::{Attach, Board, ShmLink};
use ringtree_transport::tcp::TcpLink;

/// Both ends of a shared-memory link between rank 0 and rank 1: the first is rank 0's.
pub fn shm_pair() -> (Link, Link) {
    let ((first, _), (second, _)) = shm_pair_and_boards();
    (first, second)
}

/// As [`shm_pair`], with the board of each rank.
pub fn shm_pair_and_boards() -> ((Link, Board), (Link, Board)) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let (a, b) = UnixStream::pair().expect("a socket pair");
    let establish = move |socket, peer| {
        let board = Board::new().expect("a board");
        let link = ShmLink::establish(socket, peer, board.memory(), Attach::Auto, deadline)
            .expect("a link");
        (Link::Shm(link), board)
    };
    let other = std::thread::spawn(move || establish(b, 0));
    (establish(a, 1), other.join().expect("the other end"))
}

/// Both ends of a TCP link over loopback between rank 0 and rank 1: the first is rank 0's.
pub fn tcp_pair() -> (Link, Link) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let dialed = TcpStream::connect(listener.local_addr().expect("its address")).expect("loopback");
    let (accepted, _) = listener.accept().expect("a connection");
    let link = |socket, peer| Link::Tcp(TcpLink::new(socket, peer).expect("a link"));
    (link(dialed, 1), link(accepted, 0))
}
