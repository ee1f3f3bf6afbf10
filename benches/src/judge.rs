//! Trials as they are watched: whether they count is seen from outside.

use crate::error::BenchError;
use crate::load::Load;
use crate::search::{Judge, Judged};
use crate::trial::{Discard, Traffic};
use crate::watch::Watch;
use std::time::Duration;

impl Judge for Watch<'_> {
    fn trial(
        &mut self,
        load: &mut dyn Load,
        rate: Option<f64>,
        time: Duration,
    ) -> Result<Judged, BenchError> {
        let (offered, observed) = self.observe(|| load.offer(rate, time))?;
        let traffic = Traffic::of(&offered);
        Ok(Judged {
            discarded: Discard::judge(&traffic, &observed, self.plan.wait_max),
            offered,
            observed,
        })
    }
}
