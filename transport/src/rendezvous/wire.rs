//! Requests to the store and its answers, as values and as bytes.
//!
//! A request is the time to wait (`u64`, milliseconds), a kind and its fields; an answer is a kind
//! and its fields.

use std::sync::Arc;
use std::time::Duration;

use super::{KEY_LIMIT_BYTES, RANKS_LIMIT, StoreError, VALUE_LIMIT_BYTES};
use crate::fields::{Fields, put_bytes};

/// Longest wait that a request may ask for.
const WAIT_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Longest text of an [`StoreError::Invalid`].
const REASON_LIMIT_BYTES: usize = 4096;

const SET: u8 = 1;
const GET: u8 = 2;
const ADD: u8 = 3;
const GATHER: u8 = 4;

const DONE: u8 = 1;
const VALUE: u8 = 2;
const SUM: u8 = 3;
const VALUES: u8 = 4;

const STOPPED: u8 = 128;
const TIMED_OUT: u8 = 129;
const MISSING: u8 = 130;
const CLAIMED: u8 = 131;
const RANKS_DIFFER: u8 = 132;
const NOT_COUNTER: u8 = 133;
const INVALID: u8 = 134;
const ABANDONED: u8 = 135;

/// What the store is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Set { key: String, value: Vec<u8> },
    Get { key: String },
    Add { key: String, amount: i64 },
    Gather { prefix: String, rank: u32, ranks: u32, value: Vec<u8> },
}

/// What the store answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Done,
    Value(Vec<u8>),
    Sum(i64),
    /// By rank; shared, since all ranks get the same.
    Values(Arc<Vec<Vec<u8>>>),
}

impl Request {
    /// Checks the limits, which hold for every store alike.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let (key, value) = match self {
            Request::Set { key, value } | Request::Gather { prefix: key, value, .. } => {
                (key, value.len())
            }
            Request::Get { key } | Request::Add { key, .. } => (key, 0),
        };
        let reason = match *self {
            Request::Gather { ranks, .. } if ranks > RANKS_LIMIT => {
                format!("{ranks} ranks, and at most {RANKS_LIMIT} are allowed")
            }
            Request::Gather { rank, ranks, .. } if rank >= ranks => {
                format!("rank {rank} is not below the number of ranks, {ranks}")
            }
            _ if key.len() > KEY_LIMIT_BYTES => {
                format!("a key of {} bytes, and at most {KEY_LIMIT_BYTES} are allowed", key.len())
            }
            _ if value > VALUE_LIMIT_BYTES => {
                format!("a value of {value} bytes, and at most {VALUE_LIMIT_BYTES} are allowed")
            }
            _ => return Ok(()),
        };
        Err(StoreError::Invalid { reason })
    }

    pub(super) fn encode(&self, wait: Duration) -> Vec<u8> {
        let wait_ms = wait.min(WAIT_LIMIT).as_millis() as u64;
        let mut out = wait_ms.to_le_bytes().to_vec();
        match self {
            Request::Set { key, value } => {
                out.push(SET);
                put_bytes(&mut out, key.as_bytes());
                put_bytes(&mut out, value);
            }
            Request::Get { key } => {
                out.push(GET);
                put_bytes(&mut out, key.as_bytes());
            }
            Request::Add { key, amount } => {
                out.push(ADD);
                put_bytes(&mut out, key.as_bytes());
                out.extend_from_slice(&amount.to_le_bytes());
            }
            Request::Gather { prefix, rank, ranks, value } => {
                out.push(GATHER);
                put_bytes(&mut out, prefix.as_bytes());
                out.extend_from_slice(&rank.to_le_bytes());
                out.extend_from_slice(&ranks.to_le_bytes());
                put_bytes(&mut out, value);
            }
        }
        out
    }

    /// The request and how long it may wait; `None` where the bytes are none.
    pub(super) fn decode(message: &[u8]) -> Option<(Request, Duration)> {
        let mut fields = Fields::new(message);
        let wait = Duration::from_millis(fields.u64()?).min(WAIT_LIMIT);
        let kind = fields.u8()?;
        let key = fields.text(KEY_LIMIT_BYTES)?;
        let request = match kind {
            SET => Request::Set { key, value: fields.bytes(VALUE_LIMIT_BYTES)?.into() },
            GET => Request::Get { key },
            ADD => Request::Add { key, amount: fields.i64()? },
            GATHER => Request::Gather {
                prefix: key,
                rank: fields.u32()?,
                ranks: fields.u32()?,
                value: fields.bytes(VALUE_LIMIT_BYTES)?.into(),
            },
            _ => return None,
        };
        fields.end()?;
        request.check().ok()?;
        Some((request, wait))
    }
}

/// An answer as bytes. Only what a store itself answers can be an error here.
pub(super) fn encode_answer(answer: &Result<Reply, StoreError>) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Ok(Reply::Done) => out.push(DONE),
        Ok(Reply::Value(value)) => {
            out.push(VALUE);
            put_bytes(&mut out, value);
        }
        Ok(Reply::Sum(sum)) => {
            out.push(SUM);
            out.extend_from_slice(&sum.to_le_bytes());
        }
        Ok(Reply::Values(values)) => {
            out.push(VALUES);
            out.extend_from_slice(&(values.len() as u32).to_le_bytes());
            values.iter().for_each(|value| put_bytes(&mut out, value));
        }
        Err(error) => encode_error(&mut out, error),
    }
    out
}

fn encode_error(out: &mut Vec<u8>, error: &StoreError) {
    match error {
        StoreError::Stopped => out.push(STOPPED),
        StoreError::TimedOut { key } => {
            out.push(TIMED_OUT);
            put_bytes(out, key.as_bytes());
        }
        StoreError::Abandoned { prefix } => {
            out.push(ABANDONED);
            put_bytes(out, prefix.as_bytes());
        }
        StoreError::Missing { prefix, ranks, of } => {
            out.push(MISSING);
            put_bytes(out, prefix.as_bytes());
            out.extend_from_slice(&of.to_le_bytes());
            out.extend_from_slice(&(ranks.len() as u32).to_le_bytes());
            ranks.iter().for_each(|rank| out.extend_from_slice(&rank.to_le_bytes()));
        }
        StoreError::Claimed { prefix, rank } => {
            out.push(CLAIMED);
            put_bytes(out, prefix.as_bytes());
            out.extend_from_slice(&rank.to_le_bytes());
        }
        StoreError::RanksDiffer { prefix, ranks, others } => {
            out.push(RANKS_DIFFER);
            put_bytes(out, prefix.as_bytes());
            out.extend_from_slice(&ranks.to_le_bytes());
            out.extend_from_slice(&others.to_le_bytes());
        }
        StoreError::NotCounter { key } => {
            out.push(NOT_COUNTER);
            put_bytes(out, key.as_bytes());
        }
        other => {
            out.push(INVALID);
            put_bytes(out, other.to_string().as_bytes());
        }
    }
}

/// The answer from its bytes; `None` where they are none.
pub(super) fn decode_answer(message: &[u8]) -> Option<Result<Reply, StoreError>> {
    let mut fields = Fields::new(message);
    let kind = fields.u8()?;
    let answer = match kind {
        DONE => Ok(Reply::Done),
        VALUE => Ok(Reply::Value(fields.bytes(VALUE_LIMIT_BYTES)?.into())),
        SUM => Ok(Reply::Sum(fields.i64()?)),
        VALUES => {
            let ranks = fields.u32().filter(|ranks| *ranks <= RANKS_LIMIT)?;
            let values: Option<Vec<Vec<u8>>> =
                (0..ranks).map(|_| fields.bytes(VALUE_LIMIT_BYTES).map(Vec::from)).collect();
            Ok(Reply::Values(Arc::new(values?)))
        }
        _ => Err(decode_error(kind, &mut fields)?),
    };
    fields.end()?;
    Some(answer)
}

fn decode_error(kind: u8, fields: &mut Fields<'_>) -> Option<StoreError> {
    Some(match kind {
        STOPPED => StoreError::Stopped,
        TIMED_OUT => StoreError::TimedOut { key: fields.text(KEY_LIMIT_BYTES)? },
        ABANDONED => StoreError::Abandoned { prefix: fields.text(KEY_LIMIT_BYTES)? },
        MISSING => {
            let prefix = fields.text(KEY_LIMIT_BYTES)?;
            let of = fields.u32()?;
            let missing = fields.u32().filter(|missing| *missing <= RANKS_LIMIT)?;
            let ranks = (0..missing).map(|_| fields.u32()).collect::<Option<Vec<u32>>>()?;
            StoreError::Missing { prefix, ranks, of }
        }
        CLAIMED => {
            StoreError::Claimed { prefix: fields.text(KEY_LIMIT_BYTES)?, rank: fields.u32()? }
        }
        RANKS_DIFFER => StoreError::RanksDiffer {
            prefix: fields.text(KEY_LIMIT_BYTES)?,
            ranks: fields.u32()?,
            others: fields.u32()?,
        },
        NOT_COUNTER => StoreError::NotCounter { key: fields.text(KEY_LIMIT_BYTES)? },
        INVALID => StoreError::Invalid { reason: fields.text(REASON_LIMIT_BYTES)? },
        _ => return None,
    })
}

impl Reply {
    pub(super) fn done(self) -> Result<(), StoreError> {
        match self {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn value(self) -> Result<Vec<u8>, StoreError> {
        match self {
            Reply::Value(value) => Ok(value),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn sum(self) -> Result<i64, StoreError> {
        match self {
            Reply::Sum(sum) => Ok(sum),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn values(self) -> Result<Vec<Vec<u8>>, StoreError> {
        match self {
            Reply::Values(values) => Ok(Arc::unwrap_or_clone(values)),
            _ => Err(unexpected()),
        }
    }
}

fn unexpected() -> StoreError {
    StoreError::Invalid { reason: "an answer to another question".into() }
}
