//! How a call finds its memory in the buffers that it owns or holds.

use std::marker::PhantomData;

use super::lengths::Lengths;
use crate::engine::{Engine, Place};
use crate::prepared::Call;
use crate::{Element, Error};

/// Where a call reads and writes, and how long that is.
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) lengths: Lengths,
}

/// See the file's description.
pub(super) trait Form<B> {
    /// Any safe code may answer differently each time it is asked: what is found is not to be used after
    /// the buffers have been touched in another way.
    fn find(buffers: &mut B) -> Found;
}

/// Runs a call on buffers that it owns or holds, if they still are as long as it says.
pub(super) fn run<F: Form<B>, B>(
    engine: &mut Engine,
    call: &Call,
    buffers: &mut B,
) -> Result<(), Error> {
    let Found { place, lengths } = F::find(buffers);
    lengths.check(call, engine.rank(), engine.ranks())?;
    // SAFETY: the buffers are this call's until it returns, and as long as it says.
    unsafe { engine.run(call, place) }
}

/// One buffer, read and written.
pub(super) struct InPlace<T>(PhantomData<T>);

impl<T: Element, B: AsMut<[T]>> Form<B> for InPlace<T> {
    fn find(buffer: &mut B) -> Found {
        let buffer = buffer.as_mut();
        let place = Place::In(buffer.as_mut_ptr().cast());
        Found { place, lengths: Lengths::InPlace(buffer.len()) }
    }
}

/// A buffer to read and one to write, which cannot overlap.
pub(super) struct Into<T>(PhantomData<T>);

impl<T: Element, A: AsRef<[T]>, B: AsMut<[T]>> Form<(A, B)> for Into<T> {
    fn find((input, output): &mut (A, B)) -> Found {
        let (input, output) = (input.as_ref(), output.as_mut());
        Found {
            place: Place::Into(input.as_ptr().cast(), output.as_mut_ptr().cast()),
            lengths: Lengths::Into { input: input.len(), output: output.len() },
        }
    }
}

/// A buffer that is only read.
pub(super) struct Read<T>(PhantomData<T>);

impl<T: Element, B: AsRef<[T]>> Form<B> for Read<T> {
    fn find(buffer: &mut B) -> Found {
        let buffer = buffer.as_ref();
        Found {
            place: Place::Into(buffer.as_ptr().cast(), std::ptr::null_mut()),
            lengths: Lengths::Read(buffer.len()),
        }
    }
}

/// No memory at all.
pub(super) struct Nothing;

impl Form<()> for Nothing {
    fn find(_: &mut ()) -> Found {
        Found { place: Place::In(std::ptr::null_mut()), lengths: Lengths::InPlace(0) }
    }
}
