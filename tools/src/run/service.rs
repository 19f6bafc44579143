//! What the ranks of a job meet at.

use super::LaunchOptions;

/// Why ranks could not meet here.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {}

/// The job's name, secret and meeting place.
pub struct Service {
    job: String,
}

impl Service {
    /// Starts it.
    pub fn start(options: &LaunchOptions) -> Result<Service, ServiceError> {
        Ok(Service { job: options.job.clone().unwrap_or_else(|| "job".into()) })
    }

    /// What the ranks need to find it.
    pub fn environment(&self) -> Vec<(&'static str, Option<String>)> {
        vec![("RINGTREE_JOB", Some(self.job.clone()))]
    }
}
