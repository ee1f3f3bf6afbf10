//! DPDK's guests as the victim: two virtio-user devices of one testpmd, which forwards a fixed set of frames between them.

use super::FairnessOptions;
use crate::backend::crosspoint::Started;
use crate::error::BenchError;
use crate::load::{Load, Offered, times};
use crate::options::{Cli, Command, VmOptions};
use crate::testpmd::Testpmd;
use crate::threads::Thread;
use clap::Parser;
use std::time::Duration;

/// A testpmd between two ports of the switch. Its frames circulate, so it has only the maximum rate, and measures no times.
pub struct DpdkLoad(Testpmd);

impl DpdkLoad {
    /// Connects it to the first two ports of `started`.
    pub fn connect(options: &FairnessOptions, started: &Started) -> Result<Self, BenchError> {
        let vm = vm_options(options)?;
        let sockets = &started.backend.ports.sockets;
        let configuration = vm.pair.configurations().into_iter().next();
        let configuration =
            configuration.ok_or_else(|| BenchError::backend("vm", "has no configuration"))?;
        Testpmd::connect(sockets, &configuration, &vm).map(Self)
    }

    /// The thread that forwards.
    pub fn thread(&self) -> Thread {
        self.0.worker
    }
}

/// The corresponding options of `vm`.
fn vm_options(options: &FairnessOptions) -> Result<VmOptions, BenchError> {
    let core = options.generator_core.to_string();
    let words = [
        "crosspoint-bench",
        "vm",
        "--guests",
        "testpmd",
        "--sizes",
        "64",
    ];
    let more = ["--flows", "1", "--generator-core", &core];
    let parsed = Cli::try_parse_from(words.into_iter().chain(more));
    match parsed.map(|cli| cli.command) {
        Ok(Command::Vm(vm)) => Ok(*vm),
        Ok(_) => Err(BenchError::backend("vm", "is another command")),
        Err(why) => Err(BenchError::Usage(why.to_string())),
    }
}

impl Load for DpdkLoad {
    fn offer(&mut self, _rate: Option<f64>, time: Duration) -> Result<Offered, BenchError> {
        let traffic = self.0.run(time)?;
        Ok(Offered {
            seconds: traffic.seconds,
            due: traffic.arrived,
            sent: traffic.arrived,
            arrived: traffic.arrived,
            arrived_within: traffic.arrived,
            ring_full: 0.0,
            latency_ns: times(),
            first_ns: times(),
            loss_runs: times(),
            turns_ns: times(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vm_is_asked_for_is_understood() {
        let words = ["crosspoint-bench", "fairness", "--generator-core", "3"];
        let Command::Fairness(options) = Cli::try_parse_from(words).unwrap().command else {
            unreachable!("asked for fairness");
        };
        let vm = vm_options(&options).unwrap();
        assert_eq!(vm.plan.generator_core, 3);
        assert_eq!(vm.pair.configurations().len(), 1);
    }
}
