//! Resolves `[workers] cores` to cores of this machine, and checks ports' `worker` keys against their number.

use std::collections::HashMap;

use super::check::{Checker, Place};
use super::error::{ConfigError, Problem};
use super::limits::WORKERS_MAX;
use super::{Config, Cores, Port};

/// Places of `cores` and of each port's `worker` in the files. They are not part of a configuration's value: all
/// `CoreSpans` are equal, so that a comment that shifts a line does not make the configuration different.
#[derive(Clone, Debug, Default)]
pub struct CoreSpans {
    cores: Vec<Place>,
    /// By the port's name.
    workers: HashMap<String, Place>,
}

impl CoreSpans {
    pub(super) fn new(cores: Vec<Place>) -> Self {
        Self {
            cores,
            workers: HashMap::new(),
        }
    }

    pub(super) fn with_workers(self, workers: HashMap<String, Place>) -> Self {
        Self { workers, ..self }
    }
}

/// The cores that "auto" means, out of the sorted `allowed` ones.
pub(super) fn auto(allowed: &[usize]) -> Vec<usize> {
    match allowed {
        [_, others @ ..] if !others.is_empty() => {
            others.iter().copied().take(WORKERS_MAX).collect()
        }
        _ => allowed.to_vec(),
    }
}

/// Records each port whose `worker` does not exist among this number of workers.
pub(super) fn check_workers(
    checker: &mut Checker,
    ports: &[Port],
    places: &HashMap<String, Place>,
    workers: usize,
) {
    for port in ports {
        let Some(worker) = port.worker.filter(|worker| *worker >= workers) else {
            continue;
        };
        let message = match workers {
            1 => format!("there is no worker {worker}: one core makes one worker, worker 0"),
            n => format!(
                "there is no worker {worker}: {n} cores make {n} workers, 0 to {}",
                n - 1
            ),
        };
        let help = "workers count from 0, in the order of `[workers] cores`: take a lower number, or give the switch more cores";
        let place = places.get(&port.name).cloned();
        let place = place.unwrap_or_else(|| checker.place(0..0));
        checker.problem_at(place, message, "no such worker", help);
    }
}

impl PartialEq for CoreSpans {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for CoreSpans {}

impl Config {
    /// The cores that get a worker, given the cores on which the process may run (its affinity mask).
    ///
    /// "auto" means all of them except the lowest, which is left for everything else, and at most [`WORKERS_MAX`]; if
    /// there is only one, that one.
    ///
    /// # Errors
    ///
    /// Names each listed core that is not in `affinity`, and each port's worker that has no core, with its place.
    pub fn resolve_cores(&self, affinity: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let cores = self.cores(affinity)?;
        let places = &self.core_spans.workers;
        if let Some(place) = places.values().min_by_key(|place| place.file.order) {
            let mut checker = Checker::new(place.file.clone());
            check_workers(&mut checker, &self.ports, places, cores.len());
            checker.finish()?;
        }
        Ok(cores)
    }

    pub(super) fn cores(&self, affinity: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let mut allowed = affinity.to_vec();
        allowed.sort_unstable();
        allowed.dedup();
        match &self.workers.cores {
            Cores::List(cores) => self.check_cores(cores, &allowed).map(|()| cores.clone()),
            Cores::Auto if allowed.is_empty() => {
                let help = "give the process a core (CPUAffinity=, taskset, cpuset), or list some: cores = [2, 3]";
                let message = "the process may not run on any core".to_owned();
                Err(ConfigError::one(Problem::unplaced(
                    "[workers]",
                    message,
                    help,
                )))
            }
            Cores::Auto => Ok(auto(&allowed)),
        }
    }

    fn check_cores(&self, cores: &[usize], allowed: &[usize]) -> Result<(), ConfigError> {
        let missing: Vec<_> = cores
            .iter()
            .enumerate()
            .filter(|(_, core)| !allowed.contains(core))
            .collect();
        let message = |core: &usize| {
            format!("core {core} is not among the cores that the process may run on")
        };
        let help = format!(
            "it may run on {}; change `cores`, or the process's affinity (CPUAffinity=, taskset, cpuset)",
            ranges(allowed)
        );
        match (self.core_spans.cores.first(), missing.first()) {
            (Some(place), _) => {
                let mut checker = Checker::new(place.file.clone());
                for (index, core) in missing {
                    let place = self.core_spans.cores.get(index).unwrap_or(place);
                    checker.problem_at(place.clone(), message(core), "not available", &help);
                }
                checker.finish()
            }
            (None, Some((_, core))) => Err(ConfigError::one(Problem::unplaced(
                "[workers]",
                message(core),
                help,
            ))),
            (None, None) => Ok(()),
        }
    }
}

/// Formats sorted numbers like the kernel: "0-3,8".
fn ranges(sorted: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &core in sorted {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == core => *end = core,
            _ => runs.push((core, core)),
        }
    }
    let runs = runs.into_iter().map(|(start, end)| match end - start {
        0 => start.to_string(),
        _ => format!("{start}-{end}"),
    });
    let runs: Vec<String> = runs.collect();
    if runs.is_empty() {
        "no core".to_owned()
    } else {
        runs.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn cores_are_shown_as_the_kernel_shows_them() {
        assert_eq!(ranges(&[]), "no core");
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[0, 1, 2, 8, 10, 11]), "0-2,8,10-11");
    }
}
