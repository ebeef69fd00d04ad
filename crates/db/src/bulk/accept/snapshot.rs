//! The rows that the decisions about a batch of calls depend on, read in one query.

use std::collections::{BTreeSet, HashMap};

use domain::{RegionId, RegionStatus, Registered, RequestId, Timestamp};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, FromQueryResult};
use serde::{Serialize, de::DeserializeOwned};
use tracing::instrument;
use uuid::Uuid;

use super::NewSynchronization;
use crate::{
    Result,
    connections::Session,
    entity::parse,
    sql::{ColumnKind, Rows, Sql},
};

/// The rows that the decisions about a batch of calls depend on.
#[derive(Debug, Default)]
pub struct BatchSnapshot {
    /// Images by id.
    pub images: HashMap<String, Registered>,
    /// Replicas by image id.
    pub replicas: HashMap<String, Vec<(RegionId, ReplicaSeen)>>,
    /// Earlier calls by principal and client token.
    pub tokens: HashMap<(String, String), IdempotentRequest>,
    /// Generation of the images (see [`crate::image_generation`]); `None` on MySQL, where the images are locked.
    pub generation: Option<i64>,
}

/// An image in the JSON result: its id, home region, and the image that superseded it.
type ImageRow = (String, String, Option<String>);

/// The state of a replica from the point of view of a call of the batch.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaSeen {
    pub status: RegionStatus,
    /// Whether an earlier call of the batch starts the replica's copy.
    pub is_in_batch: bool,
}

/// An earlier call with the same token.
#[derive(Debug, Clone)]
pub struct IdempotentRequest {
    pub request_id: RequestId,
    pub parameters: String,
}

impl BatchSnapshot {
    /// Reads the rows that the calls need, and the database's clock.
    #[instrument(name = "step: read", level = "trace", skip_all)]
    pub async fn read(
        session: &Session<impl ConnectionTrait + Send>,
        calls: &[NewSynchronization],
    ) -> Result<(Self, Timestamp)> {
        let images: BTreeSet<&str> = calls.iter().map(|call| call.image.as_str()).collect();
        let tokens: BTreeSet<(&str, &str)> = calls
            .iter()
            .filter_map(|call| call.token.as_ref().map(|token| (call.principal.as_str(), token.as_str())))
            .collect();
        if session.get_database_backend() == DbBackend::MySql {
            Self::read_by_rows(session, &images, &tokens).await
        } else {
            Self::read_as_json(session, &images, &tokens).await
        }
    }

    /// SQLite and PostgreSQL: reads one row with a JSON array for each list. Each separate row would have to be passed
    /// from the connection's thread or be decoded. Takes no lock: the write locks and checks the rows that the batch
    /// depends on.
    async fn read_as_json(
        session: &Session<impl ConnectionTrait + Send>,
        images: &BTreeSet<&str>,
        tokens: &BTreeSet<(&str, &str)>,
    ) -> Result<(Self, Timestamp)> {
        #[derive(FromQueryResult)]
        struct Row {
            images: Option<String>,
            replicas: Option<String>,
            tokens: Option<String>,
            generation: i64,
            now_millis: i64,
        }
        let backend = session.get_database_backend();
        // The databases differ in how they split and build JSON arrays.
        let (images_join, tokens_join, list, row, request_id) = if backend == DbBackend::Sqlite {
            let names = "json_each(?1) AS item CROSS JOIN";
            let pairs = "json_each(?2) AS item CROSS JOIN";
            (names, pairs, "json_group_array", "json_array", "hex(s.request_id)")
        } else {
            let names = "json_array_elements_text($1::json) AS item(value) JOIN";
            let pairs = "json_array_elements($2::json) AS item(value) JOIN";
            (names, pairs, "json_agg", "json_build_array", "s.request_id")
        };
        let read = format!(
            "SELECT \
             (SELECT CAST({list}({row}(i.id, i.home_region, i.superseded_by)) AS text) \
             FROM {images_join} image AS i ON i.id = item.value) AS images, \
            (SELECT CAST({list}({row}(r.image_id, r.region_id, r.state)) AS text) \
             FROM {images_join} replica AS r ON r.image_id = item.value) AS replicas, \
            (SELECT CAST({list}({row}(s.principal, s.client_token, {request_id}, s.image_id, s.parameters)) AS text) \
             FROM {tokens_join} synchronization AS s \
             ON s.principal = item.value ->> 0 AND s.client_token = item.value ->> 1) AS tokens, \
             (SELECT generation FROM image_generation) AS generation, "
        );
        let values = [json(images)?, json(tokens)?];
        let rows: Vec<Row> =
            Sql::new(session).numbered(&read, values).now().text(" AS now_millis").all(session).await?;
        let row = rows.into_iter().next();
        let row = row.ok_or_else(|| DbErr::RecordNotFound("the snapshot of a batch of calls".to_owned()))?;
        let mut snapshot = Self { generation: Some(row.generation), ..Self::default() };
        for (image, home, superseded_by) in from_json::<Vec<ImageRow>>(row.images.as_deref())? {
            snapshot.add_image(image, &home, superseded_by.as_deref())?;
        }
        for (image, region, status) in from_json::<Vec<(String, String, String)>>(row.replicas.as_deref())? {
            snapshot.add_replica(image, &region, &status)?;
        }
        for (principal, token, request_id, image, targets) in
            from_json::<Vec<(String, String, String, String, String)>>(row.tokens.as_deref())?
        {
            let request_id = parse("synchronization.request_id", &request_id)?;
            snapshot.add_token((principal, token), request_id, &image, &targets);
        }
        Ok((snapshot, Timestamp::from_millis(row.now_millis)))
    }

    /// MySQL and MariaDB: reads rows, because these databases truncate aggregated JSON, and locks the images. On these
    /// databases, two transactions that insert the same key end in a deadlock instead of a duplicate-key error. The
    /// lock makes calls for the same image, and its removal, wait for each other. The lock writes nothing.
    async fn read_by_rows(
        session: &Session<impl ConnectionTrait + Send>,
        images: &BTreeSet<&str>,
        tokens: &BTreeSet<(&str, &str)>,
    ) -> Result<(Self, Timestamp)> {
        #[derive(FromQueryResult)]
        struct ReplicaRow {
            id: String,
            home_region: String,
            superseded_by: Option<String>,
            region_id: Option<String>,
            state: Option<String>,
            now_millis: i64,
        }
        #[derive(FromQueryResult)]
        struct TokenRow {
            principal: String,
            client_token: String,
            request_id: Uuid,
            image_id: String,
            parameters: String,
        }
        let mut snapshot = Self::default();
        let mut time = 0;
        let ids = || Rows::new([("id", ColumnKind::Name)], images.iter().map(|image| [(*image).into()]));
        Sql::new(session)
            .text("SELECT i.id FROM ")
            .rows(ids())
            .join()
            .text("image AS i ON i.id = w.id ORDER BY i.id")
            .lock("i")
            .execute(session)
            .await?;
        let rows: Vec<ReplicaRow> = Sql::new(session)
            .text("SELECT i.id, i.home_region, i.superseded_by, r.region_id, r.state, ")
            .now()
            .text(" AS now_millis FROM ")
            .rows(ids())
            .join()
            .text("image AS i ON i.id = w.id LEFT JOIN replica AS r ON r.image_id = i.id")
            .all(session)
            .await?;
        for row in rows {
            time = row.now_millis;
            if let (Some(region), Some(state)) = (row.region_id, row.state) {
                snapshot.add_replica(row.id.clone(), &region, &state)?;
            }
            snapshot.add_image(row.id, &row.home_region, row.superseded_by.as_deref())?;
        }
        if !tokens.is_empty() {
            let rows = tokens.iter().map(|(principal, token)| [(*principal).into(), (*token).into()]);
            let earlier: Vec<TokenRow> = Sql::new(session)
                .text("SELECT s.principal, s.client_token, s.request_id, s.image_id, s.parameters FROM ")
                .rows(Rows::new([("principal", ColumnKind::Text), ("token", ColumnKind::Name)], rows))
                .join()
                .text("synchronization AS s ON s.principal = w.principal AND s.client_token = w.token")
                .all(session)
                .await?;
            for row in earlier {
                let token = (row.principal, row.client_token);
                snapshot.add_token(token, row.request_id.into(), &row.image_id, &row.parameters);
            }
        }
        Ok((snapshot, Timestamp::from_millis(time)))
    }

    fn add_image(&mut self, image: String, home: &str, superseded_by: Option<&str>) -> Result<()> {
        let home = parse("image.home_region", home)?;
        let superseded_by = superseded_by.map(|by| parse("image.superseded_by", by)).transpose()?;
        self.images.insert(image, Registered { home, superseded_by });
        Ok(())
    }

    fn add_replica(&mut self, image: String, region: &str, status: &str) -> Result<()> {
        let replica = ReplicaSeen { status: parse("replica.state", status)?, is_in_batch: false };
        self.replicas.entry(image).or_default().push((parse("replica.region_id", region)?, replica));
        Ok(())
    }

    fn add_token(&mut self, token: (String, String), request_id: RequestId, image: &str, targets: &str) {
        self.tokens.insert(token, IdempotentRequest { request_id, parameters: parameters(image, targets) });
    }
}

/// The parameters that a repeated call must share with the first one.
pub fn parameters(image: &str, targets: &str) -> String {
    format!("{image} {targets}")
}

fn json(rows: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(rows).map_err(|error| DbErr::Json(error.to_string()))?)
}

/// Decodes an aggregated list, which is NULL when it is empty.
fn from_json<T: DeserializeOwned + Default>(text: Option<&str>) -> Result<T> {
    let list = text.map(serde_json::from_str).transpose();
    Ok(list.map_err(|error| DbErr::Json(error.to_string()))?.unwrap_or_default())
}
