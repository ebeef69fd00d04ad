//! What the database says about a group of calls: one question, whatever is asked for.

use std::collections::{BTreeSet, HashMap};

use sea_orm::{ConnectionTrait, DbBackend, DbErr, FromQueryResult};
use serde::{Serialize, de::DeserializeOwned};
use tracing::instrument;
use uuid::Uuid;

use super::Ask;
use crate::{
    domain::{RegionId, RegionStatus, Registered, RequestId, Timestamp},
    state::{
        Result,
        database::Session,
        entity::parse,
        sql::{Kind, Rows, Sql},
    },
};

/// What the database says about a group of calls.
#[derive(Debug, Default)]
pub struct Known {
    pub images: HashMap<String, Registered>,
    pub replicas: HashMap<String, Vec<(RegionId, Ahead)>>,
    pub tokens: HashMap<(String, String), Repeated>,
    /// The generation of the images; none on MySQL, where the images are locked. See [`super::super::image_generation`].
    pub generation: Option<i64>,
}

/// An image as the answer in JSON has it: its id, its home, what has superseded it.
type ImageRow = (String, String, Option<String>);

/// What a call finds of a replica.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    pub status: RegionStatus,
    /// Whether a call of the same group has asked for it.
    pub ours: bool,
}

/// An earlier call with the same token.
#[derive(Debug, Clone)]
pub struct Repeated {
    pub request_id: RequestId,
    pub parameters: String,
}

impl Known {
    /// Reads what the group needs, and the time by the database's clock.
    #[instrument(name = "step: read", level = "trace", skip_all)]
    pub async fn read(db: &Session<impl ConnectionTrait + Send>, asks: &[Ask]) -> Result<(Self, Timestamp)> {
        let images: BTreeSet<&str> = asks.iter().map(|ask| ask.image.as_str()).collect();
        let tokens: BTreeSet<(&str, &str)> = asks
            .iter()
            .filter_map(|ask| ask.token.as_ref().map(|token| (ask.principal.as_str(), token.as_str())))
            .collect();
        if db.get_database_backend() == DbBackend::MySql {
            Self::read_by_rows(db, &images, &tokens).await
        } else {
            Self::read_as_json(db, &images, &tokens).await
        }
    }

    /// One question, whose answer is one row, each list as one JSON array: a row for every entry would have to be handed from the
    /// database's thread to this one, or be taken apart on its own. Nothing is locked: what the group relies on is looked at again, under
    /// a lock, when it is written.
    async fn read_as_json(
        db: &Session<impl ConnectionTrait + Send>,
        images: &BTreeSet<&str>,
        tokens: &BTreeSet<(&str, &str)>,
    ) -> Result<(Self, Timestamp)> {
        #[derive(FromQueryResult)]
        struct Answer {
            images: Option<String>,
            replicas: Option<String>,
            tokens: Option<String>,
            generation: i64,
            now_millis: i64,
        }
        let backend = db.get_database_backend();
        // Each says what it gathers, and how it takes a list apart, in words of its own.
        let (images_join, tokens_join, list, row, request_id) = if backend == DbBackend::Sqlite {
            let names = "json_each(?1) AS wanted CROSS JOIN";
            let pairs = "json_each(?2) AS wanted CROSS JOIN";
            (names, pairs, "json_group_array", "json_array", "hex(s.request_id)")
        } else {
            let names = "json_array_elements_text($1::json) AS wanted(value) JOIN";
            let pairs = "json_array_elements($2::json) AS wanted(value) JOIN";
            (names, pairs, "json_agg", "json_build_array", "s.request_id")
        };
        let read = format!(
            "SELECT \
             (SELECT CAST({list}({row}(i.id, i.home_region, i.superseded_by)) AS text) \
             FROM {images_join} image AS i ON i.id = wanted.value) AS images, \
            (SELECT CAST({list}({row}(r.image_id, r.region_id, r.state)) AS text) \
             FROM {images_join} replica AS r ON r.image_id = wanted.value) AS replicas, \
            (SELECT CAST({list}({row}(s.principal, s.client_token, {request_id}, s.image_id, s.asked)) AS text) \
             FROM {tokens_join} synchronization AS s \
             ON s.principal = wanted.value ->> 0 AND s.client_token = wanted.value ->> 1) AS tokens, \
             (SELECT generation FROM image_generation) AS generation, "
        );
        let values = [json(images)?, json(tokens)?];
        let answers: Vec<Answer> = Sql::on(db).numbered(&read, values).now().text(" AS now_millis").all(db).await?;
        let answer = answers.into_iter().next();
        let answer = answer.ok_or_else(|| DbErr::RecordNotFound("the answer about a group of calls".to_owned()))?;
        let mut known = Self { generation: Some(answer.generation), ..Self::default() };
        for (image, home, superseded_by) in from_json::<Vec<ImageRow>>(answer.images.as_deref())? {
            known.note_image(image, &home, superseded_by.as_deref())?;
        }
        for (image, region, status) in from_json::<Vec<(String, String, String)>>(answer.replicas.as_deref())? {
            known.note_replica(image, &region, &status)?;
        }
        for (principal, token, request_id, image, asked) in
            from_json::<Vec<(String, String, String, String, String)>>(answer.tokens.as_deref())?
        {
            let request_id = parse("synchronization.request_id", &request_id)?;
            known.note_token((principal, token), request_id, &image, &asked);
        }
        Ok((known, Timestamp::from_millis(answer.now_millis)))
    }

    /// MySQL and MariaDB, which cut off what they gather in JSON. Two who insert the same key end in a deadlock there, and not in a
    /// duplicate: calls for the same image wait, and so does its removal. Such a lock costs nothing that is written.
    async fn read_by_rows(
        db: &Session<impl ConnectionTrait + Send>,
        images: &BTreeSet<&str>,
        tokens: &BTreeSet<(&str, &str)>,
    ) -> Result<(Self, Timestamp)> {
        #[derive(FromQueryResult)]
        struct Found {
            id: String,
            home_region: String,
            superseded_by: Option<String>,
            region_id: Option<String>,
            state: Option<String>,
            now_millis: i64,
        }
        #[derive(FromQueryResult)]
        struct Earlier {
            principal: String,
            client_token: String,
            request_id: Uuid,
            image_id: String,
            asked: String,
        }
        let mut known = Self::default();
        let mut time = 0;
        let wanted = || Rows::new([("id", Kind::Name)], images.iter().map(|image| [(*image).into()]));
        Sql::on(db)
            .text("SELECT i.id FROM ")
            .rows(wanted())
            .join()
            .text("image AS i ON i.id = w.id ORDER BY i.id")
            .lock("i")
            .execute(db)
            .await?;
        let found: Vec<Found> = Sql::on(db)
            .text("SELECT i.id, i.home_region, i.superseded_by, r.region_id, r.state, ")
            .now()
            .text(" AS now_millis FROM ")
            .rows(wanted())
            .join()
            .text("image AS i ON i.id = w.id LEFT JOIN replica AS r ON r.image_id = i.id")
            .all(db)
            .await?;
        for row in found {
            time = row.now_millis;
            if let (Some(region), Some(state)) = (row.region_id, row.state) {
                known.note_replica(row.id.clone(), &region, &state)?;
            }
            known.note_image(row.id, &row.home_region, row.superseded_by.as_deref())?;
        }
        if !tokens.is_empty() {
            let rows = tokens.iter().map(|(principal, token)| [(*principal).into(), (*token).into()]);
            let found: Vec<Earlier> = Sql::on(db)
                .text("SELECT s.principal, s.client_token, s.request_id, s.image_id, s.asked FROM ")
                .rows(Rows::new([("principal", Kind::Text), ("token", Kind::Name)], rows))
                .join()
                .text("synchronization AS s ON s.principal = w.principal AND s.client_token = w.token")
                .all(db)
                .await?;
            for row in found {
                let token = (row.principal, row.client_token);
                known.note_token(token, row.request_id.into(), &row.image_id, &row.asked);
            }
        }
        Ok((known, Timestamp::from_millis(time)))
    }

    fn note_image(&mut self, image: String, home: &str, superseded_by: Option<&str>) -> Result<()> {
        let home = parse("image.home_region", home)?;
        let superseded_by = superseded_by.map(|by| parse("image.superseded_by", by)).transpose()?;
        self.images.insert(image, Registered { home, superseded_by });
        Ok(())
    }

    fn note_replica(&mut self, image: String, region: &str, status: &str) -> Result<()> {
        let ahead = Ahead { status: parse("replica.state", status)?, ours: false };
        self.replicas.entry(image).or_default().push((parse("replica.region_id", region)?, ahead));
        Ok(())
    }

    fn note_token(&mut self, token: (String, String), request_id: RequestId, image: &str, asked: &str) {
        self.tokens.insert(token, Repeated { request_id, parameters: parameters(image, asked) });
    }
}

/// What a repeated call must have in common with the first.
pub fn parameters(image: &str, targets: &str) -> String {
    format!("{image} {targets}")
}

fn json(rows: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(rows).map_err(|error| DbErr::Json(error.to_string()))?)
}

/// What a database has gathered; it may say nothing where there is nothing.
fn from_json<T: DeserializeOwned + Default>(text: Option<&str>) -> Result<T> {
    let read = text.map(serde_json::from_str).transpose();
    Ok(read.map_err(|error| DbErr::Json(error.to_string()))?.unwrap_or_default())
}
