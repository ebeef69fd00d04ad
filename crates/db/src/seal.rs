//! Encryption of upload sessions. A session's URL can be a bearer secret that allows writing to the upload. Sessions
//! are therefore encrypted with a key that is not in the database, so that a copy of the database does not expose them.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use url::Url;

use super::{Error, Result, Settings, connections};

/// Salt of the key derivation (HKDF-Extract, RFC 5869, section 2.2).
const SALT: &[u8] = b"appferry upload sessions 1";
/// Prefix of an encrypted text.
const PREFIX: &str = "sealed1:";

/// Encrypts and decrypts texts (AES-256-GCM).
pub struct Seal(Option<RandomizedNonceKey>);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal(..)")
    }
}

impl Seal {
    /// Derives the key of a database. On a server, the key comes from the password in the URL, or from the URL if it
    /// has no password, so that processes that share the database share the key. For an SQLite file, the key comes from
    /// a key file beside it. For a database in memory, the key is random.
    pub fn new(settings: &Settings) -> Result<Self> {
        if let Some(file) = connections::file(&settings.url) {
            let mut name = file.into_os_string();
            name.push(".key");
            let path = Path::new(&name);
            let key = key_file(path).map_err(|error| Error::Lock(path.to_owned(), Arc::new(error)))?;
            return Ok(Self::from_secret(&key));
        }
        if settings.url.starts_with("sqlite:") {
            return Ok(Self::from_secret(&rand::random::<[u8; 32]>()));
        }
        let url = Url::parse(&settings.url).ok();
        let password = url.as_ref().and_then(Url::password).unwrap_or(&settings.url);
        Ok(Self::from_secret(password.as_bytes()))
    }

    fn from_secret(secret: &[u8]) -> Self {
        // HMAC accepts a key of any length (RFC 2104, section 3), and its output has the length of the cipher's key.
        let extract = Hmac::<Sha256>::new_from_slice(SALT).map(|mut mac| {
            mac.update(secret);
            mac.finalize().into_bytes()
        });
        let key = extract.unwrap_or_default();
        Self(RandomizedNonceKey::new(&AES_256_GCM, &key).ok())
    }

    /// Encrypts a text that is bound to `context`. Returns `None` if there is no source of randomness.
    pub fn seal(&self, context: &str, text: &str) -> Option<String> {
        let mut sealed = text.as_bytes().to_vec();
        let nonce = self.0.as_ref()?.seal_in_place_append_tag(Aad::from(context.as_bytes()), &mut sealed).ok()?;
        Some(format!("{PREFIX}{}", STANDARD.encode([&nonce.as_ref()[..], &sealed].concat())))
    }

    /// Decrypts a text that is bound to `context`. Returns `None` for another key or context, or for a text that is not
    /// encrypted.
    pub fn open(&self, context: &str, sealed: &str) -> Option<String> {
        let bytes = STANDARD.decode(sealed.strip_prefix(PREFIX)?).ok()?;
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        let opened = self.0.as_ref()?.open_in_place(nonce, Aad::from(context.as_bytes()), &mut text).ok()?;
        String::from_utf8(opened.to_vec()).ok()
    }
}

/// Reads a key file, or creates one with mode 0600.
fn key_file(path: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            key = rand::random();
            file.write_all(&key)?;
            file.sync_all()?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => File::open(path)?.read_exact(&mut key)?,
        Err(error) => return Err(error),
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::{Seal, Settings};

    #[test]
    fn a_text_is_opened_with_its_key_and_context_alone() {
        let seal = |url: &str| Seal::new(&Settings::new(url.to_owned())).expect("a seal");
        let one = seal("postgres://a:secret@one/x");
        let sealed = one.seal("image", "https://registry/upload?_state=UPLOAD-SECRET").expect("a sealed text");
        assert!(!sealed.contains("registry") && one.seal("image", "x") != one.seal("image", "x"));
        // Processes may reach the server by different host names.
        let opened = seal("postgres://a:secret@two/x").open("image", &sealed);
        assert_eq!(opened.as_deref(), Some("https://registry/upload?_state=UPLOAD-SECRET"));
        assert_eq!(one.open("another", &sealed), None);
        assert_eq!(seal("postgres://a:other@one/x").open("image", &sealed), None);
        for broken in ["", "sealed1:", "sealed1:!", "sealed1:AAAA", "{\"url\":\"x\"}", &sealed[..sealed.len() - 4]] {
            assert_eq!(one.open("image", broken), None, "{broken}");
        }
    }

    #[test]
    fn the_key_file_is_readable_by_its_owner_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = Settings::new(format!("sqlite://{}/state.db?mode=rwc", directory.path().display()));
        let sealed = Seal::new(&settings).expect("a seal").seal("a", "text").expect("a sealed text");
        assert_eq!(Seal::new(&settings).expect("a seal").open("a", &sealed).as_deref(), Some("text"));
        let mode = fs::metadata(directory.path().join("state.db.key")).expect("a key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
