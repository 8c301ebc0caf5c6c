//! Log lines, text or JSON, to standard error. Shards hand them to a bounded queue and never wait: what does not fit is
//! dropped and counted.

use super::settings::LogFormat;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that may wait for standard error.
const LINES_MAX: usize = 8_192;

/// Keeps the log going; dropping it writes what waits.
pub(super) struct Logs {
    _guard: WorkerGuard,
    dropped: ErrorCounter,
}

impl Logs {
    /// Starts logging. A second start in one process (tests) keeps the first one's settings.
    pub(super) fn start(level: &str, format: LogFormat, colour: bool) -> Logs {
        let builder =
            NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).thread_name("relay-log");
        let (sink, guard) = builder.finish(std::io::stderr());
        let dropped = sink.error_counter();
        let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(sink).with_target(false);
        let _ = match format {
            LogFormat::Text => lines.with_ansi(colour).try_init(),
            LogFormat::Json => lines.json().flatten_event(true).try_init(),
        };
        Logs { _guard: guard, dropped }
    }

    /// Lines that were dropped because standard error was slow.
    pub(super) fn dropped(&self) -> usize {
        self.dropped.dropped_lines()
    }
}
