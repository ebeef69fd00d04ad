//! An OTLP collector in this process.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

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
    common::v1::any_value::Value,
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Records every span and the name of every metric.
#[derive(Debug, Clone, Default)]
pub struct Collector(Arc<Mutex<Sent>>);

#[derive(Debug, Default)]
struct Sent {
    spans: Vec<Span>,
    metrics: BTreeSet<String>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let spans = resources.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
        self.0.lock().expect("no panic").spans.extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let resources = request.into_inner().resource_metrics;
        let metrics = resources.into_iter().flat_map(|r| r.scope_metrics).flat_map(|s| s.metrics).map(|m| m.name);
        self.0.lock().expect("no panic").metrics.extend(metrics);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    /// Starts a collector, and returns it with its endpoint URL.
    pub async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let server = Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, endpoint)
    }

    /// Returns the received spans that have the given name.
    pub fn spans(&self, name: &str) -> Vec<Span> {
        self.all().into_iter().filter(|span| span.name == name).collect()
    }

    pub fn all(&self) -> Vec<Span> {
        self.0.lock().expect("no panic").spans.clone()
    }

    /// Returns the names of the received metrics.
    pub fn metrics(&self) -> BTreeSet<String> {
        self.0.lock().expect("no panic").metrics.clone()
    }
}

/// Returns an attribute of a span as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    let entry = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match entry.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key} is {other:?}"),
    }
}
