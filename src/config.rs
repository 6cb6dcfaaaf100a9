//! One configuration from file, environment and flags, in that order of precedence from low to high.

mod load;

pub use load::ConfigError;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::request::Priority;

/// Everything an operator can set. Each field has its key in the TOML file and its environment
/// variable (`EASEL_SECTION__KEY`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub server: ServerConfig,
    /// What to serve.
    pub models: ModelsConfig,
    /// Who may call.
    pub keys: Vec<KeyConfig>,
    /// The largest request that is taken.
    pub limits: Limits,
    /// How long jobs are kept.
    pub jobs: JobsConfig,
    /// Where pictures are kept.
    pub artifacts: ArtifactsConfig,
    /// How the pictures that requests name by an address are fetched.
    pub fetch: FetchConfig,
    /// What is logged.
    pub telemetry: TelemetryConfig,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// The address to listen on. Beyond loopback only with a key.
    pub host: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// The URL that clients reach the server by, when it differs from what their requests say.
    pub public_url: Option<String>,
    /// Origins whose pages may call the API; `*` is all.
    pub cors_origins: Vec<String>,
    /// Whether `/docs` and `/` (the playground) are served.
    pub docs: bool,
    /// Where jobs and pictures are kept.
    pub data_dir: PathBuf,
    /// Seconds that SIGTERM waits for running jobs before they are put back in the queue.
    pub shutdown_seconds: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 8080,
            public_url: None,
            cors_origins: Vec::new(),
            docs: true,
            data_dir: PathBuf::from("data"),
            shutdown_seconds: 20,
        }
    }
}

/// `[models]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelsConfig {
    /// The model of requests that name none.
    pub default: Option<String>,
    /// Name to source: a folder in the diffusers layout, a .safetensors or .gguf file, or a name on the hub.
    pub sources: BTreeMap<String, String>,
    /// Further names of models.
    pub aliases: BTreeMap<String, String>,
    /// Whether well-known vendor names (`dall-e-3`, …) mean the default model.
    pub any_name: bool,
    /// `auto`, `cpu`, `cuda:N` or `metal`.
    pub device: String,
    /// `auto`, `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// Most rows in one model call; 0 lets memory and measured cost decide.
    pub max_batch_rows: usize,
    /// GiB of memory that the rows of one model call may take while they are computed.
    pub memory_gib: Option<f64>,
    /// GiB of memory that the weights of all loaded models together may take.
    pub weights_gib: Option<f64>,
    /// Models that are loaded at the start; `default` is the default model.
    pub preload: Vec<String>,
    /// Models that are loaded at the start and never unloaded.
    pub pinned: Vec<String>,
    /// Seconds after which a model that nobody uses is unloaded; 0 keeps it until another needs the memory.
    pub idle_unload_seconds: u64,
    /// Seconds that a model in use keeps its memory, at least, before it makes room for one that does not fit beside it.
    pub turn_seconds: u64,
}

/// What stands for the default model in `preload` and `pinned`.
pub const DEFAULT_MODEL: &str = "default";

impl Default for ModelsConfig {
    fn default() -> Self {
        Self {
            default: None,
            sources: BTreeMap::new(),
            aliases: BTreeMap::new(),
            any_name: true,
            device: "auto".into(),
            dtype: "auto".into(),
            max_batch_rows: 0,
            memory_gib: None,
            weights_gib: None,
            preload: vec![DEFAULT_MODEL.into()],
            pinned: Vec::new(),
            idle_unload_seconds: 0,
            turn_seconds: 10,
        }
    }
}

/// `[[keys]]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Whose it is, in logs.
    pub name: String,
    /// The secret itself.
    #[serde(default)]
    pub key: Option<String>,
    /// Its SHA-256 in hex, instead of the secret.
    #[serde(default)]
    pub key_sha256: Option<String>,
    /// Jobs are seen in their workspace only.
    #[serde(default = "default_workspace")]
    pub workspace: String,
    /// What the key may do.
    #[serde(default = "default_roles")]
    pub roles: Vec<Role>,
    /// The highest priority that the key may ask for.
    #[serde(default)]
    pub priority: Priority,
}

fn default_workspace() -> String {
    "default".into()
}

fn default_roles() -> Vec<Role> {
    vec![Role::Generate, Role::Read]
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Create, cancel and delete jobs.
    Generate,
    /// Look at jobs, models and the queue.
    Read,
    /// Everything, the operator's routes included.
    Admin,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Jobs waiting before 429 `queue_full`.
    pub max_queue: usize,
    /// Bytes of a request body.
    pub max_body_bytes: usize,
    /// Pixels of a delivered picture.
    pub max_pixels: u64,
    /// Denoising steps.
    pub max_steps: usize,
    /// Pictures of one request.
    pub max_n: u32,
    /// Characters of a prompt, and of a negative prompt.
    pub max_prompt_chars: usize,
    /// Pixels of a picture that a request brings.
    pub max_input_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_queue: 1000,
            max_body_bytes: 64 << 20,
            max_pixels: 4096 * 4096,
            max_steps: 150,
            max_n: 10,
            max_prompt_chars: 32_000,
            max_input_pixels: 64 << 20,
        }
    }
}

/// `[jobs]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobsConfig {
    /// Days that an ended job and its pictures are kept; 0 keeps them for good.
    pub retention_days: u32,
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self { retention_days: 30 }
    }
}

/// `[artifacts]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArtifactsConfig {
    /// Seconds that a picture's public URL is valid.
    pub signed_url_ttl_seconds: u64,
    /// Whether picture files carry the parameters that they were made with.
    pub embed_metadata: bool,
}

impl Default for ArtifactsConfig {
    fn default() -> Self {
        Self { signed_url_ttl_seconds: 7 * 24 * 3600, embed_metadata: true }
    }
}

/// `[fetch]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FetchConfig {
    /// Hosts, by name or address, that may be fetched from although they are not on the public internet.
    pub allow_private_hosts: Vec<String>,
    /// Bytes of a fetched file.
    pub max_bytes: u64,
    /// Seconds that a fetch may take, redirects included.
    pub timeout_seconds: u64,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self { allow_private_hosts: Vec::new(), max_bytes: 32 << 20, timeout_seconds: 15 }
    }
}

/// `[telemetry]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// How log lines look.
    pub log: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}
