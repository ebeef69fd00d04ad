//! A minimal OTLP collector: receives traces over gRPC and prints each as a tree as its spans arrive.
//!
//! `cargo run --release --example collector -- 127.0.0.1:4317`, and `OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317`
//! for the service.

use std::{collections::BTreeMap, env, error::Error, time::Duration};

use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    trace::v1::{Span, status::StatusCode},
};
use tonic::{Request, Response, Status, transport::Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:4317".to_owned()).parse()?;
    println!("collecting at {address}");
    let server = Server::builder().add_service(TraceServiceServer::new(Printer));
    Ok(server.add_service(MetricsServiceServer::new(Printer)).serve(address).await?)
}

struct Printer;

#[tonic::async_trait]
impl TraceService for Printer {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
        let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
        for span in spans {
            traces.entry(span.trace_id.clone()).or_default().push(span);
        }
        for (id, mut spans) in traces {
            spans.sort_by_key(|span| span.start_time_unix_nano);
            println!("trace {}", hex::encode(id));
            let is_root = |span: &&Span| !spans.iter().any(|other| other.span_id == span.parent_span_id);
            for root in spans.iter().filter(is_root) {
                print(root, &spans, 1);
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Prints a span and those of its descendants that have arrived.
fn print(span: &Span, all: &[Span], depth: usize) {
    let duration = Duration::from_nanos(span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano));
    let is_error = span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
    println!("{}{} {duration:.1?}{}", "  ".repeat(depth), span.name, if is_error { " failed" } else { "" });
    for child in all.iter().filter(|child| child.parent_span_id == span.span_id) {
        print(child, all, depth + 1);
    }
}

/// Discards metrics, which Prometheus scrapes.
#[tonic::async_trait]
impl MetricsService for Printer {
    async fn export(
        &self,
        _: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}
