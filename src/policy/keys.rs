//! API keys: from the configuration to the caller of a request.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{KeyConfig, Role};
use crate::request::Priority;

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The key's name; `local` where no key is configured.
    pub key: String,
    /// Where its jobs are seen.
    pub workspace: String,
    /// What it may do.
    pub roles: Vec<Role>,
    /// The highest priority that it may ask for.
    pub priority: Priority,
}

impl Caller {
    /// The caller of a server without keys: the local user, who may do everything.
    pub fn local() -> Self {
        Self {
            key: "local".into(),
            workspace: "default".into(),
            roles: vec![Role::Generate, Role::Read, Role::Admin],
            priority: Priority::High,
        }
    }

    /// Whether the caller has `role`; an admin has every role.
    pub fn may(&self, role: Role) -> bool {
        self.roles.contains(&role) || self.roles.contains(&Role::Admin)
    }
}

/// A key's entry in the configuration is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("keys.{name}: {message}")]
pub struct KeyError {
    /// The key's name.
    pub name: String,
    /// What is wrong.
    pub message: String,
}

/// The configured keys. Only their digests are held.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    entries: Vec<([u8; 32], Caller)>,
}

impl Keys {
    /// Reads the configuration's keys.
    ///
    /// # Errors
    /// When a key has neither or both of `key` and `key_sha256`, a digest that is not 64 hex digits, or
    /// an empty secret.
    pub fn new(configured: &[KeyConfig]) -> Result<Self, KeyError> {
        let entries =
            configured.iter().map(|config| Ok((digest(config)?, caller(config)))).collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }

    /// Whether no key is configured, so that every caller is the local user.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The caller that `secret` belongs to. Takes the same time for every secret.
    pub fn find(&self, secret: &str) -> Option<&Caller> {
        let asked: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        let mut found = None;
        for (digest, caller) in &self.entries {
            if bool::from(digest.ct_eq(&asked)) {
                found = Some(caller);
            }
        }
        found
    }
}

fn caller(config: &KeyConfig) -> Caller {
    Caller {
        key: config.name.clone(),
        workspace: config.workspace.clone(),
        roles: config.roles.clone(),
        priority: config.priority,
    }
}

fn digest(config: &KeyConfig) -> Result<[u8; 32], KeyError> {
    let error = |message: &str| KeyError { name: config.name.clone(), message: message.into() };
    match (&config.key, &config.key_sha256) {
        (Some(secret), None) if secret.trim().is_empty() => Err(error("`key` is empty")),
        (Some(secret), None) => Ok(Sha256::digest(secret.as_bytes()).into()),
        (None, Some(hex)) => from_hex(hex).ok_or_else(|| error("`key_sha256` must be 64 hexadecimal digits")),
        _ => Err(error("give either `key` or `key_sha256`")),
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(key: Option<&str>, key_sha256: Option<&str>) -> KeyConfig {
        KeyConfig {
            name: "app".into(),
            key: key.map(Into::into),
            key_sha256: key_sha256.map(Into::into),
            workspace: "default".into(),
            roles: vec![Role::Generate],
            priority: Priority::Normal,
        }
    }

    #[test]
    fn a_digest_admits_the_secret_it_was_made_from() {
        // sha256("secret")
        let hex = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let keys = Keys::new(&[config(None, Some(hex))]).unwrap();
        assert_eq!(keys.find("secret").unwrap().key, "app");
        assert!(keys.find("Secret").is_none());
    }

    #[test]
    fn an_entry_without_a_usable_secret_is_refused() {
        for bad in [config(None, None), config(Some("a"), Some("b")), config(Some(" "), None), config(None, Some("zz"))]
        {
            assert!(Keys::new(&[bad]).is_err());
        }
    }
}
