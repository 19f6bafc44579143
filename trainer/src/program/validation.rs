//! What the model makes of data that it does not learn from: each rank looks at its part.

use candle_core::D;
use ringtree::Op;
use ringtree_trainer::data::Dataset;
use ringtree_trainer::{DataParallel, Error, Model, Real};

use crate::metrics::ValidationLine;

/// The mean loss and the share of right predictions over a whole data set, the same on all ranks.
///
/// # Errors
/// [`Error`].
pub fn validate<T: Real>(
    model: &DataParallel<Box<dyn Model>, T>,
    data: &dyn Dataset,
    batch: usize,
    step: u64,
) -> Result<ValidationLine, Error> {
    let communicator = model.communicator();
    let (rank, ranks) = (communicator.rank() as usize, communicator.ranks() as usize);
    let own: Vec<usize> = (data.len() * rank / ranks..data.len() * (rank + 1) / ranks).collect();
    // Losses, right predictions, predictions.
    let mut sums = [0.0_f64; 3];
    for indices in own.chunks(batch) {
        let batch = data.batch(indices, T::DTYPE)?.to_device(model.device())?;
        let logits = model.model().logits(&batch.input)?.detach();
        let target = batch.target.flatten_all()?;
        let mean = candle_nn::loss::cross_entropy(&logits, &target)?;
        let predicted = logits.argmax(D::Minus1)?;
        let right = predicted.eq(&target)?.to_dtype(candle_core::DType::F64)?.sum_all()?;
        let predictions = batch.predictions() as f64;
        let mean = mean.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
        sums[0] += mean * predictions;
        sums[1] += right.to_scalar::<f64>()?;
        sums[2] += predictions;
    }
    communicator.all_reduce(&mut sums, Op::Sum)?;
    let [losses, right, predictions] = sums;
    let of_all = |sum: f64| if predictions > 0.0 { sum / predictions } else { f64::NAN };
    Ok(ValidationLine {
        step,
        loss: of_all(losses),
        accuracy: of_all(right),
        predictions: predictions as u64,
    })
}
