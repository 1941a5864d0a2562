//! Serving hand-written messages with tonic: one type that turns an API into a service.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_stream::Stream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// One gRPC service: the request's path says which method.
pub(crate) trait Api: Send + Sync + 'static {
    /// Full name of the service.
    const NAME: &'static str;

    /// Answers one call.
    fn route(
        self: Arc<Self>,
        request: http::Request<Body>,
    ) -> impl Future<Output = http::Response<Body>> + Send;
}

/// An [`Api`] as tonic wants it.
pub(crate) struct ApiService<A>(Arc<A>);

impl<A> ApiService<A> {
    pub(crate) fn new(api: A) -> Self {
        Self(Arc::new(api))
    }
}

impl<A> Clone for ApiService<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: Api> NamedService for ApiService<A> {
    const NAME: &'static str = A::NAME;
}

impl<A: Api> tower::Service<http::Request<Body>> for ApiService<A> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let api = Arc::clone(&self.0);
        Box::pin(async move { Ok(api.route(request).await) })
    }
}

/// Answers a unary call.
pub(crate) async fn unary<Q, R>(
    request: http::Request<Body>,
    answer: impl Fn(Request<Q>) -> Result<R, Status> + Send,
) -> http::Response<Body>
where
    Q: prost::Message + Default + Send + 'static,
    R: prost::Message + Default + Send + 'static,
{
    let service = tower::service_fn(|request| std::future::ready(answer(request).map(Response::new)));
    Grpc::new(ProstCodec::<R, Q>::default()).unary(service, request).await
}

/// Answers a server-streaming call.
pub(crate) async fn streaming<Q, R, S>(
    request: http::Request<Body>,
    answer: impl Fn(Request<Q>) -> Result<S, Status> + Send,
) -> http::Response<Body>
where
    Q: prost::Message + Default + Send + 'static,
    R: prost::Message + Default + Send + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
{
    let service = tower::service_fn(|request| std::future::ready(answer(request).map(Response::new)));
    Grpc::new(ProstCodec::<R, Q>::default()).server_streaming(service, request).await
}

/// Answers a method that is not served.
pub(crate) fn unimplemented() -> http::Response<Body> {
    Status::unimplemented("not served by the development authority").into_http()
}
