//! Taps and the sampler: observers of frames.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crosspoint_engine::observe::sample::Sampler;
use crosspoint_engine::observe::tap::TAPS_MAX;
use crosspoint_engine::observe::tap::Tap;
use crosspoint_engine::observe::tap::Wanted;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_frame::Clock;

use super::{Dataplane, State, placement};

/// Slots of a sampler: as many samples can wait for its reader.
const SAMPLES_MAX: usize = 4096;

impl Dataplane {
    /// Makes every worker copy frames to a new tap with `slots` slots, until the tap is [removed](Self::remove_tap).
    /// `None` when there are [`TAPS_MAX`] already.
    pub fn add_tap(&self, wanted: Wanted, slots: usize) -> Option<Arc<Tap>> {
        let tap = Tap::new(wanted, slots, self.workers(), &self.clock);
        let mut state = self.lock();
        if state.taps.len() >= TAPS_MAX {
            return None;
        }
        state.taps.push(tap.clone());
        drop(self.publish(&mut state, Vec::new()));
        Some(tap)
    }

    /// Removes a tap: no worker uses it when this returns, and the frames in it can still be read.
    pub fn remove_tap(&self, tap: &Arc<Tap>) {
        let mut state = self.lock();
        state.taps.retain(|known| !Arc::ptr_eq(known, tap));
        drop(self.publish(&mut state, Vec::new()));
    }

    /// Makes every worker sample received frames, one of so many on average, and keep so many bytes of each. `None`: no
    /// frame is sampled. No worker uses the sampler before when this returns; the samples in it can still be read.
    pub fn set_sampler(&self, wanted: Option<(u32, usize)>) -> Option<Arc<Sampler>> {
        let new = |wanted| {
            let (workers, seed) = (self.workers(), placement::random_word());
            Sampler::new(wanted, SAMPLES_MAX, workers, &self.clock, seed)
        };
        let sampler = wanted.map(new);
        let mut state = self.lock();
        state.sampler.clone_from(&sampler);
        drop(self.publish(&mut state, Vec::new()));
        sampler
    }

    /// Ends taps that are limited to port `number`, which is being removed: another port may get its number.
    pub(super) fn end_taps_of(&self, state: &mut State, number: u16) {
        state.taps.retain(|tap| {
            let is_of = tap.port() == Some(number);
            if is_of {
                tap.end();
            }
            !is_of
        });
    }

    /// Ends all taps. Their owners remove them.
    pub(crate) fn end_taps(&self) {
        self.lock().taps.iter().for_each(|tap| tap.end());
    }

    /// The number of the port named `name`, if there is one.
    pub fn port_number(&self, name: &str) -> Option<u16> {
        let state = self.lock();
        let is_it = |port: &Option<super::Port>| {
            port.as_ref().is_some_and(|port| port.options.name == name)
        };
        let number = state.ports.iter().position(is_it)?;
        u16::try_from(number).ok()
    }

    /// The names of the ports, by number.
    pub fn port_names(&self) -> Vec<Option<String>> {
        let state = self.lock();
        let name = |port: &Option<super::Port>| Some(port.as_ref()?.options.name.clone());
        state.ports.iter().map(name).collect()
    }

    /// The workers' snapshot, the forwarding database's clock, and the length of its tick.
    pub fn picture(&self) -> (Arc<Snapshot>, u8, Duration) {
        let state = self.lock();
        let tick = self.shared.tick.load(Ordering::Relaxed);
        (state.view.clone(), tick, state.ageing.times().1)
    }

    /// The clock with which workers stamp frames.
    pub fn clock(&self) -> Clock {
        self.clock
    }
}
