//! Reading the configuration from its three places.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use http::Uri;
use serde::Serialize;

use super::Config;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file is not there or cannot be read.
    #[error("cannot read the configuration file {file}: {source}")]
    File {
        /// The file as it was named.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key is misspelt or its value cannot be used.
    #[error("{origin}: {message}")]
    Value {
        /// The file, variable or flag that the value came from.
        origin: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The server would be open to the network with nobody checked.
    #[error(
        "server.host is {0}, which is reachable from other machines, and no key is configured, so anybody could use this \
         server. Add a key to the configuration file:\n\n    [[keys]]\n    name = \"me\"\n    key = \"a long random secret\"\n\nor \
         listen on 127.0.0.1 only"
    )]
    OpenToTheNetwork(std::net::IpAddr),
}

/// A day; a longer wait is no shutdown.
const MOST_SHUTDOWN_SECONDS: u64 = 24 * 3600;

/// A year, which the clock can tell.
const MOST_MODEL_SECONDS: u64 = 365 * 24 * 3600;

impl Config {
    /// Reads `file` if there is one, then the environment's `EASEL_SECTION__KEY` variables, then `flags`;
    /// the later wins. `flags` serialises to the configuration's own shape with only the given keys in it.
    ///
    /// # Errors
    /// When the file cannot be read, or a key or value in one of the three is not known.
    pub fn load(file: Option<&Path>, flags: impl Serialize) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            // figment takes a missing file for an empty one, which is not what somebody who names a file wants.
            let text =
                std::fs::read_to_string(file).map_err(|source| ConfigError::File { file: file.to_owned(), source })?;
            figment = figment.merge(NamedToml { file: file.to_owned(), text });
        }
        figment.merge(environment()).merge(Serialized::globals(flags)).extract().map_err(|error| explain(error, file))
    }

    /// Refuses values of the right type that cannot work, which would else be found out by somebody's request.
    ///
    /// # Errors
    /// Names the first such key.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &str, message: String| {
            Err(ConfigError::Value { origin: "the configuration".into(), message: format!("`{key}`: {message}") })
        };
        if let Some(url) = &self.server.public_url {
            let absolute = url.parse::<Uri>().is_ok_and(|uri| uri.scheme_str().is_some() && uri.host().is_some());
            if !absolute {
                return refuse(
                    "server.public_url",
                    format!("{url:?} is not an absolute URL, as in https://easel.example"),
                );
            }
        }
        for origin in self.server.cors_origins.iter().filter(|origin| *origin != "*") {
            let whole = origin
                .parse::<Uri>()
                .is_ok_and(|uri| uri.scheme().is_some() && uri.path() == "/" && !origin.ends_with('/'));
            if !whole {
                return refuse(
                    "server.cors_origins",
                    format!("{origin:?} is not an origin, as in https://app.example"),
                );
            }
        }
        for (key, gib) in
            [("models.memory_gib", self.models.memory_gib), ("models.weights_gib", self.models.weights_gib)]
        {
            if gib.is_some_and(|gib| !gib.is_finite() || gib <= 0.0) {
                return refuse(key, "must be above 0".into());
            }
        }
        for (key, seconds) in [
            ("models.turn_seconds", self.models.turn_seconds),
            ("models.idle_unload_seconds", self.models.idle_unload_seconds),
        ] {
            if seconds > MOST_MODEL_SECONDS {
                return refuse(key, format!("must be at most {MOST_MODEL_SECONDS}"));
            }
        }
        if self.server.shutdown_seconds > MOST_SHUTDOWN_SECONDS {
            return refuse("server.shutdown_seconds", format!("must be at most {MOST_SHUTDOWN_SECONDS}"));
        }
        for key in &self.keys {
            // Header values are trimmed, and no client sends others than these in one.
            let sendable =
                |secret: &String| secret.trim() == secret && secret.chars().all(|c| c.is_ascii_graphic() || c == ' ');
            if key.key.as_ref().is_some_and(|secret| !sendable(secret)) {
                return refuse(
                    &format!("keys.{}.key", key.name),
                    "must be of printable ASCII, without spaces around it".into(),
                );
            }
        }
        for (at, key) in self.keys.iter().enumerate() {
            if self.keys[..at].iter().any(|other| other.name == key.name) {
                return refuse("keys", format!("two keys are named {:?}; idempotency keys are kept by name", key.name));
            }
        }
        Ok(())
    }

    /// Refuses a configuration that would serve the network without asking anybody for a key.
    ///
    /// # Errors
    /// When the host is not a loopback address and there is no key.
    pub fn check_exposure(&self) -> Result<(), ConfigError> {
        if self.keys.is_empty() && !self.server.host.is_loopback() {
            return Err(ConfigError::OpenToTheNetwork(self.server.host));
        }
        Ok(())
    }
}

/// Variables with a section in their name, and the list of keys. Others (`EASEL_PLAIN`) are not configuration.
fn environment() -> Env {
    Env::prefixed("EASEL_")
        .filter(|name| name == "keys" || name.as_str().contains("__"))
        .map(|name| name.as_str().to_ascii_lowercase().replace("__", ".").into())
        .lowercase(true)
}

/// A TOML file already read, so that a message can name it.
struct NamedToml {
    file: PathBuf,
    text: String,
}

impl figment::Provider for NamedToml {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(self.file.display().to_string())
    }

    fn data(&self) -> Result<figment::value::Map<figment::Profile, figment::value::Dict>, figment::Error> {
        Toml::string(&self.text).data()
    }
}

fn explain(error: figment::Error, file: Option<&Path>) -> ConfigError {
    // figment chains one error for each bad value; the first is the one to mend first.
    let mut error = error;
    if let Some(first) = error.clone().into_iter().next() {
        error = first;
    }
    let origin = match (&error.metadata, file) {
        (Some(metadata), _) if metadata.name.contains("environment") => "the environment".to_owned(),
        (Some(metadata), _) if metadata.name.contains("::") => "the command line".to_owned(),
        (Some(metadata), _) => metadata.name.to_string(),
        (None, Some(file)) => file.display().to_string(),
        (None, None) => "the configuration".to_owned(),
    };
    let path = error.path.join(".");
    let message = match &error.kind {
        Kind::UnknownField(found, expected) => {
            let section = path.strip_suffix(found.as_str()).unwrap_or(&path).trim_end_matches('.');
            let place = if section.is_empty() { String::new() } else { format!(" in [{section}]") };
            let near = expected
                .iter()
                .map(|known| (strsim::jaro_winkler(found, known), known))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .filter(|(likeness, _)| *likeness > 0.75);
            match near {
                Some((_, known)) => format!("unknown key `{found}`{place}; did you mean `{known}`?"),
                None => format!("unknown key `{found}`{place}; known keys: {}", expected.join(", ")),
            }
        }
        kind if path.is_empty() => kind.to_string().replace("``", "`"),
        kind => format!("`{path}`: {kind}").replace("``", "`"),
    };
    ConfigError::Value { origin, message }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with_file(text: &str, flags: serde_json::Value) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("easel.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file), flags)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let config = with_file("[server]\nport = 1\nhost = \"127.0.0.9\"\n", json!({"server": {"port": 2}})).unwrap();
        assert_eq!(config.server.port, 2);
        assert_eq!(config.server.host.to_string(), "127.0.0.9");
        assert_eq!(config.limits, Config::default().limits);
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_right_one() {
        let error = with_file("[limits]\nmax_que = 5\n", json!({})).unwrap_err().to_string();
        assert!(error.contains("`max_que` in [limits]; did you mean `max_queue`?"), "{error}");
        assert!(error.contains("easel.toml"), "{error}");
        let error = with_file("[limitz]\nmax_queue = 5\n", json!({})).unwrap_err().to_string();
        assert!(error.contains("did you mean `limits`?"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_key() {
        let error = with_file("[limits]\nmax_queue = \"many\"\n", json!({})).unwrap_err().to_string();
        assert!(error.contains("limits.max_queue"), "{error}");
    }

    #[test]
    fn values_that_cannot_work_are_named() {
        for (text, key) in [
            ("[server]\npublic_url = \"foo\"", "server.public_url"),
            ("[server]\ncors_origins = [\"https://a/b\"]", "server.cors_origins"),
            ("[server]\nshutdown_seconds = 9223372036854775807", "server.shutdown_seconds"),
            ("[models]\nmemory_gib = -1.0", "models.memory_gib"),
            ("[models]\nweights_gib = 0.0", "models.weights_gib"),
            ("[models]\nturn_seconds = 9223372036854775807", "models.turn_seconds"),
            ("[models]\nidle_unload_seconds = 9223372036854775807", "models.idle_unload_seconds"),
            ("[[keys]]\nname = \"a\"\nkey = \" b\"", "keys.a.key"),
            ("[[keys]]\nname = \"a\"\nkey = \"b\"\n[[keys]]\nname = \"a\"\nkey = \"c\"", "keys"),
        ] {
            let error = with_file(text, json!({})).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
        let fine =
            "[server]\npublic_url = \"https://easel.example/x\"\ncors_origins = [\"*\", \"http://localhost:3000\"]";
        assert!(with_file(fine, json!({})).unwrap().check().is_ok());
    }

    #[test]
    fn a_missing_file_is_an_error() {
        assert!(matches!(Config::load(Some(Path::new("/nonexistent.toml")), json!({})), Err(ConfigError::File { .. })));
    }

    #[test]
    fn the_network_is_not_served_without_a_key() {
        let open = with_file("[server]\nhost = \"0.0.0.0\"\n", json!({})).unwrap();
        assert!(open.check_exposure().is_err());
        let closed =
            with_file("[server]\nhost = \"0.0.0.0\"\n[[keys]]\nname = \"a\"\nkey = \"b\"\n", json!({})).unwrap();
        assert!(closed.check_exposure().is_ok());
        assert!(Config::default().check_exposure().is_ok());
    }
}
