//! Cost of each step of accepting a call. Calls `Db` directly, without the stack, and sums up the spans of the steps.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use appferry::{
    config::Config,
    db::{Db, NewSynchronization},
    domain::{Regions, Targets},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Subscriber, span};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use super::{IN_FLIGHT, Result, register};

const CALLS: usize = 60_000;
/// The spans of the steps, in execution order. Except on MySQL, the write and the commit are one step.
const STEPS: [&str; 6] = ["step: begin", "step: read", "step: decide", "step: lock", "step: write", "step: commit"];

/// Sums up the lifetimes of spans, by span name.
#[derive(Debug, Clone, Default)]
pub struct Steps(Arc<Mutex<BTreeMap<&'static str, (Duration, u32)>>>);

struct Begun(Instant);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Steps {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        if attributes.metadata().name().starts_with("step: ")
            && let Some(span) = context.span(id)
        {
            span.extensions_mut().insert(Begun(Instant::now()));
        }
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let lived = span.extensions().get::<Begun>().map(|begun| begun.0.elapsed());
        if let (Some(lived), Ok(mut steps)) = (lived, self.0.lock()) {
            let (sum, count) = steps.entry(span.name()).or_default();
            *sum += lived;
            *count += 1;
        }
    }
}

/// Installs a subscriber that records the spans of the steps.
pub fn listen() -> Steps {
    let steps = Steps::default();
    let filter = tracing_subscriber::filter::filter_fn(|metadata| metadata.name().starts_with("step: "));
    tracing_subscriber::registry().with(steps.clone().with_filter(filter)).init();
    steps
}

/// Calls `Db` directly, with as many calls in flight as through the stack, and prints the time spent in each step.
pub async fn measure(name: &str, url: &str, steps: &Steps) -> Result<()> {
    let config = Config::parse(&format!(
        "[database]\nurl = \"{url}\"\n[home]\nregion = \"home\"\n[[region]]\nid = \"home\"\nstore = \"dir:///nowhere\"\n"
    ))?;
    let settings = config.database.settings();
    appferry::db::migrate(&settings).await?;
    register(url, "part-", CALLS).await?;
    let targets =
        ["one", "two", "three"].map(|id| id.parse()).into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    let regions = Regions::new("home".parse()?, targets.clone());
    let stop = CancellationToken::new();
    let (state, tasks) = Db::open(&settings, regions, stop.clone()).await?;
    if let Ok(mut steps) = steps.0.lock() {
        steps.clear();
    }

    let next = Arc::new(AtomicUsize::new(0));
    let mut callers: JoinSet<Result<()>> = JoinSet::new();
    let started = Instant::now();
    for _ in 0..IN_FLIGHT {
        let (state, next, targets) = (state.clone(), Arc::clone(&next), targets.clone());
        callers.spawn(async move {
            loop {
                let call = next.fetch_add(1, Ordering::Relaxed);
                if call >= CALLS {
                    return Ok(());
                }
                let ask = NewSynchronization {
                    request_id: appferry::new_request_id(),
                    image: format!("part-{call}").parse()?,
                    targets: Targets::Named(targets.iter().cloned().collect()),
                    principal: "acs:ram::1:user/bench".to_owned(),
                    overwrite: false,
                    token: None,
                    trace: None,
                };
                state.accept(ask).await?;
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    let took = started.elapsed();
    stop.cancel();
    tasks.join().await;

    let steps = steps.0.lock().map_err(|_| "a step panicked")?;
    let groups = steps.get("step: read").map_or(1, |(_, count)| *count).max(1);
    let calls = u32::try_from(CALLS)?;
    println!(
        "{name}: without the stack {:.0} calls/s, {:.1} µs each; {groups} groups of {} calls",
        f64::from(calls) / took.as_secs_f64(),
        took.as_secs_f64() * 1e6 / f64::from(calls),
        calls / groups
    );
    for step in STEPS {
        if let Some((sum, _)) = steps.get(step) {
            println!(
                "{name}: {:<8} {:>7.0} µs a group, {:>5.1} µs a call",
                step.trim_start_matches("step: "),
                sum.as_secs_f64() * 1e6 / f64::from(groups),
                sum.as_secs_f64() * 1e6 / f64::from(calls)
            );
        }
    }
    Ok(())
}
