use super::*;

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_task_that_ends_cancels_its_group_and_is_named() {
    let group = TaskGroup::new("test");
    group.spawn("patient", std::future::pending());
    group.spawn("hasty", async { Ok(()) });

    let failure = group.join(SOON).await.unwrap_err();

    assert_eq!(failure.to_string(), "task hasty ended although nobody asked it to");
    assert!(group.running().is_empty());
}

#[tokio::test]
async fn a_panic_is_named_with_its_text() {
    let group = TaskGroup::new("test");
    group.spawn_transient("clumsy", async { panic!("dropped {}", "it") });

    let failure = group.join(SOON).await.unwrap_err();

    assert_eq!(failure.to_string(), "task clumsy panicked: dropped it");
}

#[tokio::test]
async fn a_failing_thread_cancels_its_group() {
    let group = TaskGroup::new("test");
    group.spawn("patient", std::future::pending());
    group.spawn_thread("worker-0", |_| anyhow::bail!("no device")).unwrap();

    let failure = group.join(SOON).await.unwrap_err();

    assert_eq!(failure.to_string(), "task worker-0 failed: no device");
}

#[tokio::test]
async fn a_panicking_thread_cancels_its_group() {
    let group = TaskGroup::new("test");
    group.spawn_thread("worker-0", |_| panic!("ouch")).unwrap();

    assert_eq!(group.join(SOON).await.unwrap_err().to_string(), "task worker-0 panicked: ouch");
}

#[tokio::test]
async fn a_transient_task_may_end() {
    let group = TaskGroup::new("test");
    group.spawn_transient("short", async { Ok(()) });
    group.shared.emptied().await;

    assert!(!group.token().is_cancelled());
    group.cancel();
    group.join(SOON).await.unwrap();
}

#[tokio::test]
async fn a_graceful_task_finishes_its_work_after_the_cancellation() {
    let group = TaskGroup::new("test");
    let (told, heard) = tokio::sync::oneshot::channel();
    group.spawn_graceful("driver", |token| async move {
        token.cancelled().await;
        tokio::task::yield_now().await;
        told.send("left").unwrap();
        Ok(())
    });
    group.cancel();

    group.join(SOON).await.unwrap();

    assert_eq!(heard.await.unwrap(), "left");
}

#[tokio::test]
async fn whoever_does_not_leave_in_time_is_named_and_aborted() {
    let group = TaskGroup::new("test");
    group.spawn_graceful("deaf", |_| std::future::pending());
    group.cancel();

    let failure = group.join(Duration::from_millis(50)).await.unwrap_err();

    assert_eq!(failure.to_string(), "still running at the deadline: deaf");
    group.shared.emptied().await;
}

#[tokio::test]
async fn a_thread_sees_the_cancellation() {
    let group = TaskGroup::new("test");
    group
        .spawn_thread("worker-0", |token| {
            while !token.is_cancelled() {
                std::thread::yield_now();
            }
            Ok(())
        })
        .unwrap();
    group.cancel();

    group.join(SOON).await.unwrap();
}

#[tokio::test]
async fn a_child_ends_with_its_parent_but_fails_alone() {
    let parent = TaskGroup::new("parent");
    let child = parent.child("child");
    child.spawn("hasty", async { Ok(()) });
    child.join(SOON).await.unwrap_err();
    assert!(!parent.token().is_cancelled());

    let second = parent.child("second");
    second.spawn("patient", std::future::pending());
    parent.cancel();

    second.join(SOON).await.unwrap();
}
