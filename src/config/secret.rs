//! Secrets from variables and files.

use std::path::PathBuf;

use super::{Error, error::invalid};
use crate::{domain::Secret, storage::SecretSource};

/// Reads a secret from a variable or a file. At most one of them may be given. `keys` are their names in errors.
pub(super) fn secret(
    keys: [&str; 2],
    variable: Option<&String>,
    file: Option<&PathBuf>,
) -> Result<Option<Secret>, Error> {
    let text = match (variable, file) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(invalid(keys[0], format!("{} is set as well; remove one of them", keys[1])));
        }
        (Some(name), None) => {
            std::env::var(name).map_err(|_| invalid(keys[0], format!("the variable {name} is not set")))?
        }
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|error| invalid(keys[1], format!("failed to read {}: {error}", file.display())))?,
    };
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    if text.is_empty() { Err(invalid(keys[0], "the secret is empty")) } else { Ok(Some(Secret(text))) }
}

/// Returns the source of a secret: a fixed value from a variable, or a file that is read whenever the secret is needed.
/// Fails if the source has no secret now.
pub(super) fn secret_source(
    keys: [&str; 2],
    variable: Option<&String>,
    file: Option<&PathBuf>,
) -> Result<Option<SecretSource>, Error> {
    let current = secret(keys, variable, file)?;
    Ok(current.map(|secret| file.map_or(SecretSource::Fixed(secret), |path| SecretSource::File(path.clone()))))
}
