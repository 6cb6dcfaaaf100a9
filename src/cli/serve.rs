//! `easel serve`: the server, from its configuration to its last reply.

use std::future::IntoFuture;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use clap::Args;
use easel_models::Pipeline;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::common::{CliError, ModelFlags, Opened, named_source, open_models, placement};
use crate::api::{self, App};
use crate::artifacts::Artifacts;
use crate::config::{Config, DEFAULT_MODEL};
use crate::engine::{EngineHandle, EngineOptions};
use crate::inputs::Fetcher;
use crate::jobs::store::SqliteStore;
use crate::jobs::{Jobs, JobsOptions};
use crate::policy::Keys;
use crate::request::Resolver;
use crate::telemetry;

/// How long the last pictures and states may take to be written once the engine has stopped.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// How long replies may take to be sent once the engine has stopped; after that their connections are cut.
const LAST_REPLIES: Duration = Duration::from_secs(2);

/// `easel serve`
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Serve a model: a folder in the diffusers layout, a .safetensors or .gguf file, or a name on the hub. May be given several times; the first one given is the default
    /// model. The model inside the binary is served too, as `easel-mini`.
    #[arg(long = "model", value_name = "NAME=SOURCE", value_parser = named_source)]
    models: Vec<(String, String)>,
    /// The address to listen on; beyond loopback only with a key in the configuration.
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// The port to listen on; 0 takes a free one.
    #[arg(long)]
    port: Option<u16>,
    /// Where jobs and pictures are kept.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Seconds that SIGTERM waits for running pictures before their jobs are put back in the queue.
    #[arg(long, value_name = "SECONDS")]
    shutdown_seconds: Option<u64>,
    /// How log lines look: human or json. EASEL_LOG chooses which, as in EASEL_LOG=easel=debug.
    #[arg(long, value_name = "FORMAT")]
    log: Option<String>,
    #[command(flatten)]
    flags: ModelFlags,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), CliError> {
        let config = self.config()?;
        telemetry::log(config.telemetry.log);
        config.check()?;
        config.check_exposure()?;
        let keys = Keys::new(&config.keys).map_err(CliError::other)?;
        // Bound before the models are loaded, so that a port in use is known at once.
        let address = SocketAddr::from((config.server.host, config.server.port));
        let listener = TcpListener::bind(address).map_err(CliError::io(format!("cannot listen on {address}")))?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::io("starting"))?;
        // What is quick to find out comes before the models.
        let data = &config.server.data_dir;
        std::fs::create_dir_all(data).map_err(CliError::io(format!("cannot make {}", data.display())))?;
        let artifacts = Artifacts::open(data, &config.artifacts).map_err(CliError::other)?;
        let store = Arc::new(SqliteStore::open(&data.join("jobs.sqlite")).map_err(CliError::other)?);
        let metrics = telemetry::metrics().map_err(CliError::other)?;
        let fetcher = Fetcher::new(&config.fetch).map_err(CliError::other)?;
        let placement = placement(&config.models)?;
        let Opened { models, faults } = open_models(&config.models, &placement)?;
        let cards = models.iter().map(|(name, model)| (name.clone(), model.card().clone())).collect();
        let resolver = Resolver::new(cards, config.limits.clone(), &config.models).map_err(CliError::other)?;
        let options = EngineOptions {
            weights_bytes: placement.memory,
            device: placement.device,
            data: Some(data.clone()),
            preload: served(&resolver, "models.preload", &config.models.preload)?,
            pinned: served(&resolver, "models.pinned", &config.models.pinned)?,
            faults,
            ..EngineOptions::from(&config.models)
        };
        check_room(&models, &options)?;
        let engine = EngineHandle::start(models, options);
        runtime.block_on(async {
            let options = JobsOptions::new(&config);
            let jobs = Jobs::open(options, store, Arc::new(engine.clone()), artifacts.clone()).await;
            let jobs = jobs.map_err(CliError::other)?;
            let app = App {
                jobs,
                engine,
                artifacts,
                resolver,
                fetcher,
                keys: Arc::new(keys),
                config: Arc::new(config),
                metrics: Some(metrics),
                started: Timestamp::now(),
                closing: CancellationToken::new(),
            };
            listen(listener, app).await
        })
    }

    fn config(&self) -> Result<Config, CliError> {
        let mut server = Map::new();
        let mut models = Map::new();
        let mut telemetry = Map::new();
        let set = |section: &mut Map<String, Value>, key: &str, value: Option<Value>| {
            if let Some(value) = value {
                section.insert(key.into(), value);
            }
        };
        set(&mut server, "host", self.host.map(|host| json!(host)));
        set(&mut server, "port", self.port.map(|port| json!(port)));
        set(&mut server, "data_dir", self.data_dir.as_ref().map(|dir| json!(dir)));
        set(&mut server, "shutdown_seconds", self.shutdown_seconds.map(|seconds| json!(seconds)));
        set(&mut telemetry, "log", self.log.as_ref().map(|format| json!(format)));
        if let Some((first, _)) = self.models.first() {
            let sources: Map<String, Value> =
                self.models.iter().map(|(name, source)| (name.clone(), json!(source))).collect();
            set(&mut models, "default", Some(json!(first)));
            set(&mut models, "sources", Some(Value::Object(sources)));
        }
        let sections = [("server", server), ("models", models), ("telemetry", telemetry)];
        self.flags.load(sections.into_iter().map(|(name, keys)| (name.to_owned(), Value::Object(keys))).collect())
    }
}

/// The served models that an operator's list means: names, aliases, or `default`.
fn served(resolver: &Resolver, key: &str, names: &[String]) -> Result<Vec<String>, CliError> {
    let model = |name: &String| {
        let default = name == DEFAULT_MODEL && resolver.models().iter().all(|(served, _)| served != name);
        let (name, _) = resolver
            .model(Some(name.as_str()).filter(|_| !default))
            .map_err(|error| CliError::Usage(format!("{key}: {error}")))?;
        Ok(name.to_owned())
    };
    names.iter().map(model).collect()
}

/// Refuses to pin more than fits, and says so where what is to be there from the start does not.
fn check_room(models: &[(String, Arc<dyn Pipeline>)], options: &EngineOptions) -> Result<(), CliError> {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let bytes = |names: &[&Vec<String>]| -> u64 {
        let named = models.iter().filter(|(name, _)| names.iter().any(|names| names.contains(name)));
        named.map(|(_, model)| model.weight_bytes()).sum()
    };
    let room = options.weights_bytes.unwrap_or(u64::MAX);
    let (pinned, early) = (bytes(&[&options.pinned]), bytes(&[&options.pinned, &options.preload]));
    if pinned > room {
        return Err(CliError::Usage(format!(
            "models.pinned: their weights take {:.2} GiB, and all models together may take {:.2} GiB (models.weights_gib)",
            gib(pinned),
            gib(room)
        )));
    }
    if early > room {
        let (needed_gib, weights_gib) = (gib(early), gib(room));
        tracing::warn!(needed_gib, weights_gib, "the models of models.preload do not fit together");
    }
    Ok(())
}

/// Serves until SIGTERM or ctrl-c. Then nothing new is accepted, running pictures get their time, the rest goes back
/// to the queue on the disk, and replies under way are sent.
async fn listen(listener: TcpListener, app: App) -> Result<(), CliError> {
    listener.set_nonblocking(true).map_err(CliError::io("listening"))?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(CliError::io("listening"))?;
    let address = listener.local_addr().map_err(CliError::io("listening"))?;
    let service = api::router(app.clone()).into_make_service_with_connect_info::<SocketAddr>();
    // Events are small, and each is to be seen at once.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's delay");
        }
    });
    let serve = axum::serve(listener, service).with_graceful_shutdown(app.closing.clone().cancelled_owned());
    let mut serving = tokio::spawn(serve.into_future());
    say_where(address);
    if let Some(metrics) = app.metrics.clone() {
        tokio::spawn(telemetry::upkeep(metrics));
    }

    tokio::select! {
        ended = &mut serving => {
            return ended.map_err(CliError::other)?.map_err(CliError::io("serving"));
        }
        () = signal() => {}
    }
    let App { jobs, engine, closing, config, .. } = app;
    let grace = Duration::from_secs(config.server.shutdown_seconds);
    tracing::info!(seconds = grace.as_secs(), "stopping: running pictures may finish, the rest stays in the queue");
    jobs.refuse();
    engine.shutdown(grace).await;
    if !jobs.close(LAST_WRITES).await {
        tracing::warn!("not every job could be written down; the next start resumes them");
    }
    closing.cancel();
    match tokio::time::timeout(LAST_REPLIES, &mut serving).await {
        Ok(ended) => ended.map_err(CliError::other)?.map_err(CliError::io("serving"))?,
        Err(_) => serving.abort(),
    }
    tracing::info!("stopped");
    Ok(())
}

/// Ends at SIGTERM or ctrl-c.
async fn signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt => {}
            },
            Err(error) => {
                tracing::warn!(%error, "SIGTERM will not be heard");
                let _ = interrupt.await;
            }
        }
    }
    #[cfg(not(unix))]
    let _ = interrupt.await;
}

#[allow(clippy::print_stdout, reason = "people and scripts read the address from standard output")]
fn say_where(address: SocketAddr) {
    println!("easel is ready at http://{address}/");
}
