//! Against a launcher that plays its part from a script, also wrongly.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// What a launcher expects, and what it answers.
type Script = [(&'static str, &'static str)];

/// Version 1: what is expected, and what is answered.
const ONE: [(&str, &str); 6] = [
    (
        "cmd=init pmi_version=1 pmi_subversion=1",
        "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0",
    ),
    ("cmd=get_my_kvsname", "cmd=my_kvsname kvsname=kvs_7_0"),
    (
        "cmd=put kvsname=kvs_7_0 key=ringtree-rendezvous value=n1:7",
        "cmd=put_result rc=0 msg=success",
    ),
    ("cmd=barrier_in", "cmd=barrier_out"),
    (
        "cmd=get kvsname=kvs_7_0 key=ringtree-rendezvous",
        "cmd=get_result rc=0 msg=success value=n1:7",
    ),
    ("cmd=finalize", "cmd=finalize_ack"),
];

/// Version 2, without the lengths.
const TWO: [(&str, &str); 7] = [
    (
        "cmd=init pmi_version=2 pmi_subversion=0",
        "cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0",
    ),
    (
        "cmd=fullinit;pmirank=0;threaded=FALSE;",
        "cmd=fullinit-response;pmi-version=2;pmi-subversion=0;rank=0;size=2;appnum=0;rc=0;",
    ),
    ("cmd=job-getid;", "cmd=job-getid-response;jobid=7.0;rc=0;"),
    ("cmd=kvs-put;key=ringtree-rendezvous;value=n1:7;", "cmd=kvs-put-response;rc=0;"),
    ("cmd=kvs-fence;", "cmd=kvs-fence-response;rc=0;"),
    (
        "cmd=kvs-get;jobid=7.0;srcid=-1;key=ringtree-rendezvous;",
        "cmd=kvs-get-response;found=TRUE;value=n1:7;rc=0;",
    ),
    ("cmd=finalize;", "cmd=finalize-response;rc=0;"),
];

/// A launcher that answers as the script says, and a rank's end of the connection. At the end of the
/// script it waits until the rank has gone.
fn launcher(script: &[(&str, &str)]) -> (UnixStream, JoinHandle<()>) {
    let (rank, theirs) = UnixStream::pair().unwrap();
    let script: Vec<_> =
        script.iter().map(|(ask, say)| (ask.to_string(), say.to_string())).collect();
    let serve = move || {
        let mut reader = BufReader::new(theirs.try_clone().unwrap());
        for (expected, answer) in script {
            let (asked, answer) = match expected.contains(';') {
                true => {
                    let mut length = [0; 6];
                    reader.read_exact(&mut length).unwrap();
                    let length = str::from_utf8(&length).unwrap().trim().parse().unwrap();
                    let mut asked = vec![0; length];
                    reader.read_exact(&mut asked).unwrap();
                    (String::from_utf8(asked).unwrap(), format!("{:6}{answer}", answer.len()))
                }
                false => {
                    let mut asked = String::new();
                    reader.read_line(&mut asked).unwrap();
                    (asked.trim_end().to_string(), format!("{answer}\n"))
                }
            };
            // The job's name is told where the launcher has named it.
            assert_eq!(asked.replace("pmijobid=7.0;", ""), expected);
            // In pieces, as a pipe may deliver them.
            answer.as_bytes().chunks(5).for_each(|piece| (&theirs).write_all(piece).unwrap());
        }
        let _ = reader.read_to_end(&mut Vec::new());
    };
    (rank, thread::spawn(serve))
}

/// What rank 0 of 2 gets from such a launcher.
fn shared(script: &[(&str, &str)], deadline: Instant) -> Result<(String, String), PmiError> {
    let (rank, serving) = launcher(script);
    // Which version is offered first.
    let job = script.first().filter(|(ask, _)| *ask == TWO[0].0).map(|_| "7.0");
    let outcome = Pmi::over(rank, job, 0, 2, deadline).and_then(|pmi| {
        let job = pmi.job().to_string();
        Ok((job, pmi.share(Some("n1:7"))?))
    });
    if outcome.is_ok() {
        serving.join().unwrap();
    }
    outcome
}

/// The script with one answer changed; it ends there.
fn with<'a>(script: &[(&'a str, &'a str)], at: usize, answer: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut changed = script[..=at].to_vec();
    changed[at].1 = answer;
    changed
}

#[test]
fn either_version_shares_rank_0s_value() {
    assert_eq!(shared(&ONE, soon()).unwrap(), ("kvs_7_0".into(), "n1:7".into()));
    assert_eq!(shared(&TWO, soon()).unwrap(), ("7.0".into(), "n1:7".into()));
}

#[test]
fn other_ranks_put_nothing() {
    let script: Vec<_> = ONE.iter().copied().filter(|(ask, _)| !ask.contains("put")).collect();
    let (rank, serving) = launcher(&script);
    let pmi = Pmi::over(rank, None, 1, 2, soon()).unwrap();
    assert_eq!(pmi.share(None).unwrap(), "n1:7");
    serving.join().unwrap();
}

#[test]
fn a_launcher_that_refuses_a_version_is_offered_the_other() {
    let refused = "cmd=response_to_init rc=-1 pmi_version=1 pmi_subversion=1";
    for (script, other) in [(&ONE[..], &TWO[..]), (&TWO, &ONE)] {
        let script = [&[(other[0].0, refused)], script].concat();
        assert_eq!(shared(&script, soon()).unwrap().1, "n1:7");
    }
    // And one that speaks another version than it was asked for is taken at its word.
    let script = [&[(TWO[0].0, ONE[0].1)], &ONE[1..]].concat();
    assert_eq!(shared(&script, soon()).unwrap().1, "n1:7");
}

#[test]
fn whatever_is_no_answer_is_repeated_to_the_user() {
    let cases: [(&Script, usize, &str, &str); 9] = [
        (&ONE, 0, "cmd=response_to_init pmi_version=3 pmi_subversion=0 rc=0", "pmi_version=3"),
        (&ONE, 1, "cmd=barrier_out", "answered \"get_my_kvsname\""),
        (&ONE, 1, "hello", "with \"hello\""),
        (&ONE, 2, "cmd=put_result rc=-1 msg=duplicate_key", "refused \"put\""),
        (&ONE, 4, "cmd=get_result rc=-1 msg=key_not_found", "key_not_found"),
        (&ONE, 4, "cmd=get_result rc=0", "answered \"get\""),
        (&TWO, 1, "cmd=fullinit-response;rank=1;size=2;rc=0;", "rank=1;size=2"),
        (&TWO, 4, "cmd=kvs-fence-response;rc=14;errmsg=no route;", "no route"),
        (&TWO, 5, "cmd=kvs-get-response;found=FALSE;rc=0;", "found=FALSE"),
    ];
    for (script, at, answer, says) in cases {
        let error = shared(&with(script, at, answer), soon()).unwrap_err().to_string();
        assert!(error.contains(says), "{answer}: {error}");
    }
}

#[test]
fn bytes_that_are_no_message_are_an_error() {
    let after_init = |bytes: &'static [u8]| {
        let (rank, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(format!("{}\n", TWO[0].1).as_bytes()).unwrap();
        theirs.write_all(bytes).unwrap();
        // The error comes before the end of the connection.
        let error = Pmi::over(rank, Some("7.0"), 0, 2, soon()).unwrap_err();
        drop(theirs);
        error
    };
    for bytes in [b"length".as_slice(), b"999999cmd=", b"-00001", b"     4\xff\xff\xff\xff"] {
        let error = after_init(bytes);
        assert!(matches!(error, PmiError::Unexpected { request: "fullinit", .. }), "{error}");
    }
}

#[test]
fn a_line_without_end_is_an_error() {
    let (rank, mut theirs) = UnixStream::pair().unwrap();
    let flood = thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
    let error = Pmi::over(rank, Some("7.0"), 0, 2, soon()).unwrap_err();
    assert!(matches!(error, PmiError::Unexpected { request: "init", .. }), "{error}");
    flood.join().unwrap();
}

#[test]
fn a_launcher_that_goes_away_or_is_silent_is_an_error_in_time() {
    let (rank, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let gone = Pmi::over(rank, Some("7.0"), 0, 2, soon()).unwrap_err();
    assert!(matches!(gone, PmiError::Lost { request: "init", .. }), "{gone}");

    let silent = shared(&[], Instant::now() + Duration::from_millis(20)).unwrap_err();
    assert_eq!(silent, PmiError::TimedOut { request: "init" });

    // It answers, and then others do not come.
    let (rank, _serving) = launcher(&ONE[..2]);
    let mut pmi = Pmi::over(rank, None, 1, 2, soon()).unwrap();
    pmi.wire.deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(pmi.share(None).unwrap_err(), PmiError::RanksMissing);
}

#[test]
fn the_server_of_a_descriptor_is_the_process_that_made_it() {
    let (rank, _theirs) = UnixStream::pair().unwrap();
    assert_eq!(server_process(rank.as_raw_fd() as u32), Some(std::process::id()));
    assert_eq!(server_process(u32::MAX), None);
    let closed = Pmi::open(u32::MAX, 0, 2, soon()).unwrap_err().to_string();
    assert!(closed.contains("PMI_FD=4294967295 cannot be used"), "{closed}");
}
