//! The list of routes: the router, the key check, the error shapes and the API document are all made from it.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, on};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use super::App;
use super::doc::Doc;
use super::errors::ApiError;
use crate::config::Role;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anyone: liveness, the page, and pictures under unguessable names.
    Open,
    /// A key with this role.
    Needs(Role),
}

/// An error's body in a dialect's own shape, with the request's id.
pub(crate) type Shape = fn(&ApiError, &str) -> Value;

/// One route.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) method: Method,
    /// As axum writes it.
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    pub(crate) shape: Shape,
    pub(crate) doc: Doc,
}

/// Routes that share an error shape, being collected.
pub(crate) struct Routes {
    router: Router<App>,
    list: Vec<Route>,
    schemas: Vec<(String, RefOr<Schema>)>,
    shape: Shape,
}

impl Routes {
    /// None yet.
    pub(crate) fn new(shape: Shape) -> Self {
        Self { router: Router::new(), list: Vec::new(), schemas: Vec::new(), shape }
    }

    /// A type that the routes' entries in the API document name, with all that it holds.
    pub(crate) fn schema<T: ToSchema>(mut self) -> Self {
        self.schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(&mut self.schemas);
        self
    }

    /// A GET route, which answers HEAD too.
    pub(crate) fn get<H, T>(self, path: &'static str, access: Access, doc: Doc, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.on(Method::GET, MethodFilter::GET, path, access, doc, handler)
    }

    /// A POST route.
    pub(crate) fn post<H, T>(self, path: &'static str, access: Access, doc: Doc, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.on(Method::POST, MethodFilter::POST, path, access, doc, handler)
    }

    /// A DELETE route.
    pub(crate) fn delete<H, T>(self, path: &'static str, access: Access, doc: Doc, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.on(Method::DELETE, MethodFilter::DELETE, path, access, doc, handler)
    }

    fn on<H, T>(
        mut self,
        method: Method,
        filter: MethodFilter,
        path: &'static str,
        access: Access,
        doc: Doc,
        handler: H,
    ) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.list.push(Route { method, path, access, shape: self.shape, doc });
        self.router = self.router.route(path, on(filter, handler));
        self
    }

    /// Both lists.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.list.extend(other.list);
        self.schemas.extend(other.schemas);
        self
    }

    /// The router, and what is known of its routes.
    pub(crate) fn finish(self) -> (Router<App>, Table) {
        let shape = self.shape;
        let mut by_path: HashMap<&'static str, Vec<usize>> = HashMap::new();
        for (i, route) in self.list.iter().enumerate() {
            by_path.entry(route.path).or_default().push(i);
        }
        (self.router, Table { inner: Arc::new(Inner { list: self.list, schemas: self.schemas, by_path, shape }) })
    }
}

/// What is known of the routes, for the layers around them.
#[derive(Clone)]
pub(crate) struct Table {
    inner: Arc<Inner>,
}

struct Inner {
    list: Vec<Route>,
    schemas: Vec<(String, RefOr<Schema>)>,
    by_path: HashMap<&'static str, Vec<usize>>,
    shape: Shape,
}

impl Table {
    /// Every route.
    pub(crate) fn routes(&self) -> &[Route] {
        &self.inner.list
    }

    /// The types that their entries in the API document name.
    pub(crate) fn schemas(&self) -> &[(String, RefOr<Schema>)] {
        &self.inner.schemas
    }

    /// Who may make this request. `None`: no such route, which still takes a key to be told.
    pub(crate) fn access(&self, request: &Request) -> Option<Access> {
        // The page that asks may look at a path with HEAD as with GET.
        let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        self.at(request).find(|route| route.method == *method).map(|route| route.access)
    }

    /// The error shape of this request's path.
    pub(crate) fn shape(&self, request: &Request) -> Shape {
        self.at(request).next().map_or(self.inner.shape, |route| route.shape)
    }

    fn at(&self, request: &Request) -> impl Iterator<Item = &Route> {
        let path = request.extensions().get::<MatchedPath>();
        let places = path.and_then(|path| self.inner.by_path.get(path.as_str()));
        places.into_iter().flatten().filter_map(|i| self.inner.list.get(*i))
    }
}
