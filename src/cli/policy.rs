//! `appferry policy check`: a decision without a service, and why it comes out as it does.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Error, Result, data_dir, print};
use crate::{
    config::Config,
    contract::{Contract, Resource},
    domain::{Clock, Timestamp, with_causes},
    ram::{ALL_RESOURCES, Claim, Context, Effect, Key, Principal, Reason, Request},
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Decide about an action as the service would, and tell why: which statement of which document. Succeeds if it is allowed.
    Check(Check),
}

#[derive(Debug, Args)]
pub struct Check {
    /// The configuration file; without one, the embedded default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Who would act, as in `acs:ram::1234:user/ops`.
    #[arg(long, value_name = "ARN")]
    principal: Principal,
    /// The action, as in ehpc:SynchronizeApp.
    #[arg(long)]
    action: String,
    /// The resource, as in acs:ehpc:*:*:app/ci-vm-1; without it, all resources.
    #[arg(long)]
    resource: Option<String>,
    /// A circumstance, as in acs:SourceIp=10.1.2.3; it may be given several times. Without another, the time is now, and the
    /// connection is by TLS if there is a `tls` section.
    #[arg(long, value_name = "KEY=VALUE")]
    context: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
pub fn run(command: Command, clock: &Clock) -> Result<()> {
    match command {
        Command::Check(arguments) => check(arguments, clock.now()),
    }
}

fn check(arguments: Check, now: Timestamp) -> Result<()> {
    let Check { config, principal, action, resource, context, json } = arguments;
    let unusable = |error: crate::config::Error| Error::Usage(format!("the configuration: {}", with_causes(&error)));
    let config = match config {
        Some(file) => Config::load(&file).map_err(unusable)?,
        None => data_dir::config(Path::new(data_dir::DIRECTORY))?,
    };
    let resource = resource_of(&action, resource)?;
    let identities = config.identities().map_err(unusable)?;
    let identity = identities.iter().find(|identity| identity.principal == principal);
    let mut claims = Vec::new();
    let mut circumstances = Context {
        current_time: Some(now),
        secure_transport: Some(config.tls.is_some()),
        principal: Some(principal.as_str()),
        ..Context::default()
    };
    for pair in &context {
        claims.extend(read(pair, &config, &mut circumstances)?);
    }
    circumstances.claims = &claims;
    let request = Request { action: &action, resource: &resource, context: &circumstances };
    let policies = identity.map(|identity| identity.policies.clone()).unwrap_or_default();
    let decision = policies.decide(&request);
    let reasons = policies.explain(&request);
    let why =
        if identity.is_some() { decision.to_string() } else { format!("{principal} is not one of [[principal]]") };
    if json {
        print_json(decision.is_allowed(), &why, &reasons)?;
    } else {
        let word = if decision.is_allowed() { "allowed" } else { "denied" };
        let on = if resource == ALL_RESOURCES { "all resources (*)" } else { &resource };
        print::line(&format!("{word}: {principal}, {action}, on {on}: {why}"))?;
        for reason in &reasons {
            print::line(&format!("  {}", line(reason)))?;
        }
    }
    if decision.is_allowed() { Ok(()) } else { Err(Error::Ended(format!("denied: {why}"))) }
}

/// What an action of the contract is performed on has the form that its row says.
fn resource_of(action: &str, given: Option<String>) -> Result<String> {
    let contract = Contract::load().map_err(Error::local("the contract"))?;
    let mut rows = contract.authorizations.iter().map(|(_, row)| row);
    let row = rows.find(|row| row.action.eq_ignore_ascii_case(action));
    match (row.map(|row| &row.resource), given) {
        (None, _) => Err(Error::Usage(format!("--action {action}: no method of this service asks for it"))),
        (Some(Resource::Named(template)), None) => {
            let form = template.describe();
            Err(Error::Usage(format!("{action} is performed on one resource: give --resource, of the form {form}")))
        }
        (Some(Resource::All), Some(resource)) if resource != ALL_RESOURCES => Err(Error::Usage(format!(
            "--resource {resource}: {action} is performed on all resources, as the service decides about it"
        ))),
        (_, given) => Ok(given.unwrap_or_else(|| ALL_RESOURCES.to_owned())),
    }
}

/// Reads a circumstance into its place; one that is a claim is returned.
fn read(pair: &str, config: &Config, context: &mut Context<'_>) -> Result<Option<Claim>> {
    let usage = |why: String| Error::Usage(format!("--context {pair}: {why}"));
    let (name, value) = pair.split_once('=').ok_or_else(|| usage("it is not of the form KEY=VALUE".to_owned()))?;
    let keys = config.condition_keys();
    let key = keys.find(name).ok_or_else(|| usage(format!("no call has that key; known are {}", keys.names())))?;
    match key {
        Key::SourceIp => {
            let address = value.parse().map_err(|_| usage(format!("{value:?} is no address")))?;
            context.source_ip = Some(address);
        }
        Key::CurrentTime => {
            let time = Timestamp::parse(value);
            context.current_time =
                Some(time.ok_or_else(|| usage(format!("{value:?} is no time like 2026-11-25T17:00:00Z")))?);
        }
        Key::SecureTransport => {
            let secure = value.parse().map_err(|_| usage(format!("{value:?} is neither true nor false")))?;
            context.secure_transport = Some(secure);
        }
        Key::PrincipalArn => return Err(usage("it is what --principal says".to_owned())),
        Key::Claim(name) => return Ok(Some(Claim { name, value: value.to_owned() })),
    }
    Ok(None)
}

fn line(reason: &Reason) -> String {
    let effect = match reason.effect {
        Effect::Allow => "Allow",
        Effect::Deny => "Deny",
    };
    match &reason.mismatch {
        None => format!("{} ({effect}) applies", reason.statement),
        Some(why) => format!("{} ({effect}) does not apply: {why}", reason.statement),
    }
}

fn print_json(allowed: bool, why: &str, reasons: &[Reason]) -> Result<()> {
    let statements = reasons.iter().map(|reason| {
        serde_json::json!({
            "policy": &*reason.statement.policy,
            "statement": reason.statement.statement,
            "effect": format!("{:?}", reason.effect),
            "applies": reason.mismatch.is_none(),
            "why_not": reason.mismatch,
        })
    });
    let statements: Vec<_> = statements.collect();
    print::line(&serde_json::json!({ "allowed": allowed, "why": why, "statements": statements }).to_string())
}
