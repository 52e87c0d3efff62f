//! What is defined and not built yet says so, with a reason and the feature's name.

use carillon::proto::public::{ExplainMatchRequest, TestSubscriptionRequest};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::World;
use crate::harness::tenant::assert_refused;

#[tokio::test]
async fn every_call_that_is_not_built_yet_answers_unimplemented() {
    let tenant = World::shared().await.tenant().await;
    let mut events = tenant.events();
    let statuses = [
        events.test_subscription(TestSubscriptionRequest::default()).await.err(),
        events.explain_match(ExplainMatchRequest::default()).await.err(),
    ];
    for status in statuses {
        let status = status.expect("the call is not built yet");
        let status = assert_refused(Err::<(), _>(status), Code::Unimplemented, "NOT_IMPLEMENTED");
        let info = status.get_details_error_info().expect("it is set");
        assert!(!info.metadata["feature"].is_empty(), "{info:?}");
    }
}
