//! `appferry policy check`: evaluates the policies without a service and explains the decision.

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
    /// Decide about an action as the service does, and list the statements that apply. Succeeds if the action is
    /// allowed.
    Check(Check),
}

#[derive(Debug, Args)]
pub struct Check {
    /// The configuration file. Default: that of ./appferry-data.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The caller, for example `acs:ram::1234:user/ops`.
    #[arg(long, value_name = "ARN")]
    principal: Principal,
    /// The action, for example ehpc:SynchronizeApp.
    #[arg(long)]
    action: String,
    /// The resource, for example acs:ehpc:*:*:app/ci-vm-1. Default: all resources.
    #[arg(long)]
    resource: Option<String>,
    /// A condition key and its value, for example acs:SourceIp=10.1.2.3; may be repeated. Defaults: the current time,
    /// and a secure transport if the configuration has a `tls` section.
    #[arg(long, value_name = "KEY=VALUE")]
    context: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs a subcommand.
pub fn run(command: Command, clock: &Clock) -> Result<()> {
    match command {
        Command::Check(arguments) => check(arguments, clock.now()),
    }
}

fn check(arguments: Check, now: Timestamp) -> Result<()> {
    let Check { config, principal, action, resource, context, json } = arguments;
    let invalid = |error: crate::config::Error| Error::usage(format!("invalid configuration: {}", with_causes(&error)));
    let config = match config {
        Some(file) => Config::load(&file).map_err(invalid)?,
        None => data_dir::config(Path::new(data_dir::DIRECTORY))?,
    };
    let resource = resolve_resource(&action, resource)?;
    let identities = config.identities().map_err(invalid)?;
    let identity = identities.iter().find(|identity| identity.principal == principal);
    let mut claims = Vec::new();
    let mut request_context = Context {
        current_time: Some(now),
        secure_transport: Some(config.tls.is_some()),
        principal: Some(principal.as_str()),
        ..Context::default()
    };
    for pair in &context {
        claims.extend(parse_context(pair, &config, &mut request_context)?);
    }
    request_context.claims = &claims;
    let request = Request { action: &action, resource: &resource, context: &request_context };
    let policies = identity.map(|identity| identity.policies.clone()).unwrap_or_default();
    let decision = policies.decide(&request);
    let explanations = policies.explain(&request);
    let reason =
        if identity.is_some() { decision.to_string() } else { format!("{principal} is not one of [[principal]]") };
    if json {
        print_json(decision.is_allowed(), &reason, &explanations)?;
    } else {
        let verdict = if decision.is_allowed() { "allowed" } else { "denied" };
        let on = if resource == ALL_RESOURCES { "all resources (*)" } else { &resource };
        print::line(&format!("{verdict}: {principal}, {action}, on {on}: {reason}"))?;
        for explanation in &explanations {
            print::line(&format!("  {}", line(explanation)))?;
        }
    }
    if decision.is_allowed() { Ok(()) } else { Err(Error::failed(format!("denied: {reason}"))) }
}

/// Returns the resource of a decision. Checks it against the contract, in which an action applies either to all
/// resources or to a single one.
fn resolve_resource(action: &str, given: Option<String>) -> Result<String> {
    let contract = Contract::load().map_err(Error::local("failed to load the contract"))?;
    let mut rows = contract.authorizations.iter().map(|(_, row)| row);
    let row = rows.find(|row| row.action.eq_ignore_ascii_case(action));
    match (row.map(|row| &row.resource), given) {
        (None, _) => Err(Error::usage(format!("--action {action}: no method of this service requires it"))),
        (Some(Resource::Named(template)), None) => {
            let form = template.describe();
            Err(Error::usage(format!("{action} applies to a single resource"))
                .with_hint(format!("set --resource, of the form {form}")))
        }
        (Some(Resource::All), Some(resource)) if resource != ALL_RESOURCES => {
            Err(Error::usage(format!("--resource {resource}: {action} applies to all resources"))
                .with_hint("omit --resource"))
        }
        (_, given) => Ok(given.unwrap_or_else(|| ALL_RESOURCES.to_owned())),
    }
}

/// Parses a condition key and its value into `context`. If the key is that of a claim, returns the claim instead.
fn parse_context(pair: &str, config: &Config, context: &mut Context<'_>) -> Result<Option<Claim>> {
    let usage = |problem: String| Error::usage(format!("--context {pair}: {problem}"));
    let (name, value) = pair.split_once('=').ok_or_else(|| usage("not of the form KEY=VALUE".to_owned()))?;
    let keys = config.condition_keys();
    let key = keys.find(name).ok_or_else(|| usage(format!("unknown key; expected one of {}", keys.names())))?;
    match key {
        Key::SourceIp => {
            let address = value.parse().map_err(|_| usage(format!("{value:?} is not an IP address")))?;
            context.source_ip = Some(address);
        }
        Key::CurrentTime => {
            let time = Timestamp::parse(value);
            context.current_time =
                Some(time.ok_or_else(|| usage(format!("{value:?} is not a time like 2026-11-25T17:00:00Z")))?);
        }
        Key::SecureTransport => {
            let secure = value.parse().map_err(|_| usage(format!("{value:?} is neither true nor false")))?;
            context.secure_transport = Some(secure);
        }
        Key::PrincipalArn => return Err(usage("use --principal for this key".to_owned())),
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
        Some(mismatch) => format!("{} ({effect}) does not apply: {mismatch}", reason.statement),
    }
}

fn print_json(is_allowed: bool, why: &str, explanations: &[Reason]) -> Result<()> {
    let statements = explanations.iter().map(|reason| {
        serde_json::json!({
            "policy": &*reason.statement.policy,
            "statement": reason.statement.statement,
            "effect": format!("{:?}", reason.effect),
            "applies": reason.mismatch.is_none(),
            "why_not": reason.mismatch,
        })
    });
    let statements: Vec<_> = statements.collect();
    print::line(&serde_json::json!({ "allowed": is_allowed, "why": why, "statements": statements }).to_string())
}
