//! One object of every kind with every part of it in use.

use std::collections::BTreeMap;

use crate::types::object::*;
use crate::types::*;

pub(super) fn text(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn annotations(name: &str) -> Annotations {
    Annotations {
        name: name.to_owned(),
        labels: text(&[("tier", "front"), ("empty", "")]),
        indices: text(&[("rack", "r7")]),
    }
}

fn driver(name: &str) -> Driver {
    Driver { name: name.to_owned(), options: text(&[("k", "v")]) }
}

fn meta(seed: u64) -> Meta {
    Meta { version: Revision(seed), created_at: Timestamp(seed * 1000), updated_at: Timestamp(seed * 1000 + 1) }
}

fn key(subsystem: &str) -> EncryptionKey {
    EncryptionKey { subsystem: subsystem.into(), algorithm: 1, key: Sensitive(vec![9; 16]), lamport_time: 3 }
}

pub(crate) fn cluster() -> Object {
    Cluster {
        id: ClusterId(0xc1),
        meta: meta(1),
        spec: ClusterSpec {
            annotations: annotations("default"),
            task_history_retention_limit: 5,
            raft: RaftSettings::for_profile(Profile::Lan),
            heartbeat_period_ms: 5000,
            ca: CaSettings {
                node_certificate_expiry_ms: 7_776_000_000,
                external_cas: vec![ExternalCa {
                    url: "https://ca".into(),
                    options: text(&[("o", "p")]),
                    certificate: "pem".into(),
                }],
                signing_ca_certificate: String::new(),
                signing_ca_key: Sensitive(Vec::new()),
                force_rotate: 0,
                expired_grace_ms: 31_536_000_000,
            },
            default_log_driver: Some(driver("json-file")),
            auto_lock_managers: true,
            acceptance_policies: vec![AcceptancePolicy { role: Role::Worker, autoaccept: true }],
        },
        root_ca: RootCa {
            key: Sensitive(b"key".to_vec()),
            certificate: "root".into(),
            digest: "digest".into(),
            join_tokens: JoinTokens { worker: "SWMTKN-1-w".into(), manager: "SWMTKN-1-m".into() },
            rotation: Some(RootRotation {
                certificate: "new".into(),
                key: Sensitive(b"new".to_vec()),
                cross_signed_certificate: "cross".into(),
                issuer: "issuer".into(),
                join_tokens: JoinTokens { worker: "SWMTKN-1-v".into(), manager: "SWMTKN-1-n".into() },
                started_at: Timestamp(1_800_000_000_001),
                skip: [NodeId(0x12), NodeId(0x13)].into(),
            }),
            last_forced_rotation: 2,
        },
        network_bootstrap_keys: vec![key("networking:gossip")],
        encryption_key_lamport_clock: 4,
        unlock_keys: vec![key("swarm-manager")],
        fips: false,
        default_address_pool: vec!["10.0.0.0/8".into()],
        subnet_size: 24,
        vxlan_udp_port: 4789,
        feature_level: 1,
    }
    .into()
}

pub(super) fn node() -> Object {
    let mut node = Node::new(NodeId(0x11), Role::Manager);
    node.meta = meta(2);
    node.spec.annotations = annotations("");
    node.description = NodeDescription {
        hostname: "m1".into(),
        architecture: "x86_64".into(),
        os: "linux".into(),
        nano_cpus: 2_000_000_000,
        memory_bytes: 1 << 30,
        generic_resources: vec![
            GenericResource::Discrete { kind: "gpu".into(), value: 2 },
            GenericResource::Named { kind: "fpga".into(), value: "f0".into() },
        ],
        engine_version: "27".into(),
        engine_labels: text(&[("e", "l")]),
        plugins: vec![("Network".into(), "overlay".into())],
        trust_root_digest: "digest".into(),
        certificate_issuer: vec![0x30, 0xff],
        certificate_issuer_public_key: vec![0x30, 0xfe],
        fips: true,
        csi: vec![NodeCsiInfo {
            plugin: "nfs".into(),
            node_id: "n".into(),
            max_volumes_per_node: 8,
            accessible_topology: text(&[("zone", "a")]),
        }],
    };
    node.status = NodeStatus { state: NodeState::Ready, message: "up".into(), addr: "10.0.0.1".into() };
    node.certificate.state = IssuanceState::Issued;
    node.certificate.certificate = "chain".into();
    node.certificate.issuer = "issuer".into();
    node.certificate.expires_at = Timestamp(1_800_000_000_000);
    node.certificate.reported_issuer = "reported".into();
    node.certificate.in_use = true;
    node.certificate.approved_until = Some(Timestamp(1_700_000_000_000));
    node.manager_until = Timestamp(1_790_000_000_000);
    node.attachments = vec![attachment()];
    node.vxlan_udp_port = 4789;
    node.into()
}

fn attachment() -> NetworkAttachment {
    NetworkAttachment {
        network_id: ObjectId(0x31),
        addresses: vec!["10.1.0.7/24".into()],
        aliases: vec!["web".into()],
        driver_options: text(&[("a", "b")]),
    }
}

pub(super) fn secret() -> Object {
    Secret {
        id: ObjectId(0x41),
        meta: meta(3),
        spec: SecretSpec {
            annotations: annotations("password"),
            data: Sensitive(b"hunter2".to_vec()),
            templating: Some(driver("golang")),
            driver: Some(driver("vault")),
        },
        internal: true,
    }
    .into()
}

pub(super) fn config() -> Object {
    let spec = ConfigSpec {
        annotations: annotations("nginx.conf"),
        data: b"listen 80;\n\xff".to_vec(),
        templating: Some(Box::new(driver("golang"))),
    };
    Config { id: ObjectId(0x51), meta: meta(4), spec }.into()
}

pub(super) fn extension() -> Object {
    Extension {
        id: ObjectId(0x61),
        meta: meta(5),
        annotations: annotations("widget"),
        description: "Widgets of all sizes".into(),
    }
    .into()
}

pub(super) fn resource() -> Object {
    Resource {
        id: ObjectId(0x71),
        meta: meta(6),
        annotations: annotations("widget-1"),
        kind: "widget".into(),
        payload: vec![0, 1, 2, 255],
    }
    .into()
}

fn task_spec() -> TaskSpec {
    TaskSpec {
        runtime: Runtime::Container(Box::new(ContainerSpec {
            image: "nginx@sha256:1".into(),
            mounts: vec![Mount {
                kind: MountKind::Tmpfs(TmpfsOptions { size_bytes: 1 << 20, mode: 0o1777, options: "noexec".into() }),
                source: String::new(),
                target: "/tmp".into(),
                read_only: false,
                consistency: MountConsistency::Cached,
            }],
            secrets: vec![SecretReference {
                secret_id: ObjectId(0x41),
                secret_name: "password".into(),
                target: Some(FileTarget { name: "pw".into(), uid: "0".into(), gid: "0".into(), mode: 0o400 }),
            }],
            configs: vec![ConfigReference { config_id: ObjectId(0x51), ..ConfigReference::default() }],
            privileges: Some(Privileges {
                credential_spec: Some(CredentialSpec::Config(ObjectId(0x52))),
                seccomp: Some(Seccomp::Custom(b"{}".to_vec())),
                ..Privileges::default()
            }),
            ..ContainerSpec::default()
        })),
        resources: Some(ResourceRequirements {
            limits: Some(ResourceLimits { nano_cpus: 1, memory_bytes: 2, pids: 3 }),
            ..ResourceRequirements::default()
        }),
        restart: Some(RestartPolicy::default()),
        placement: Some(Placement { constraints: vec!["node.role==worker".into()], ..Placement::default() }),
        networks: vec![NetworkAttachmentConfig { target: ObjectId(0x31), ..NetworkAttachmentConfig::default() }],
        resource_references: vec![ResourceReference { kind: ResourceReferenceKind::Secret, id: ObjectId(0x42) }],
        ..TaskSpec::default()
    }
}

pub(super) fn service() -> Object {
    Service {
        id: ObjectId(0x21),
        meta: meta(7),
        spec: ServiceSpec {
            annotations: annotations("web"),
            task: task_spec(),
            mode: ServiceMode::ReplicatedJob { max_concurrent: 2, total_completions: 9 },
            update: Some(UpdateConfig { max_failure_ratio: 0.25, ..UpdateConfig::default() }),
            rollback: None,
            networks: vec![NetworkAttachmentConfig { target: ObjectId(0x32), ..NetworkAttachmentConfig::default() }],
            endpoint: Some(EndpointSpec {
                mode: ResolutionMode::DnsRoundRobin,
                ports: vec![PortConfig { target_port: 80, published_port: 8080, ..PortConfig::default() }],
            }),
        },
        previous_spec: Some(Box::default()),
        update_status: Some(UpdateStatus { state: UpdateState::Paused, ..UpdateStatus::default() }),
        job_status: Some(JobStatus { iteration: 1, last_execution: Some(Timestamp(5)) }),
        ..Service::default()
    }
    .into()
}

pub(super) fn task() -> Object {
    Task {
        id: ObjectId(0x81),
        meta: meta(8),
        spec: task_spec(),
        service_id: Some(ObjectId(0x21)),
        slot: 3,
        node_id: Some(NodeId(0x11)),
        service_annotations: annotations("web"),
        status: TaskStatus { state: TaskState::Running, ..TaskStatus::default() },
        desired_state: TaskState::Running,
        networks: vec![attachment()],
        endpoint: Some(Box::default()),
        volumes: vec![VolumeAttachment { volume_id: ObjectId(0x91), ..VolumeAttachment::default() }],
        ..Task::default()
    }
    .into()
}

pub(super) fn network() -> Object {
    Network {
        id: ObjectId(0x31),
        meta: meta(9),
        spec: NetworkSpec { annotations: annotations("front"), attachable: true, ..NetworkSpec::default() },
        ipam: Some(Ipam {
            driver: driver("default"),
            configs: vec![IpamConfig { subnet: "10.1.0.0/24".into(), ..IpamConfig::default() }],
        }),
        ..Network::default()
    }
    .into()
}

pub(super) fn volume() -> Object {
    Volume {
        id: ObjectId(0x91),
        meta: meta(10),
        spec: VolumeSpec {
            annotations: annotations("data"),
            driver: driver("nfs"),
            secrets: vec![VolumeSecret { key: "k".into(), secret: ObjectId(0x43) }],
            ..VolumeSpec::default()
        },
        publish_status: vec![VolumePublishStatus {
            node_id: NodeId(0x11),
            state: VolumePublishState::Published,
            context: text(&[]),
            message: String::new(),
        }],
        info: Some(VolumeInfo { volume_id: "v".into(), ..VolumeInfo::default() }),
        ..Volume::default()
    }
    .into()
}

pub(super) fn token() -> Object {
    Token {
        id: ObjectId(0xa1),
        meta: meta(11),
        annotations: annotations(""),
        role: Role::Worker,
        expires_at: Some(Timestamp(1_800_000_000_000)),
        uses_left: Some(5),
        root_digest: "digest".into(),
        secret_digest: Sensitive(vec![7; 32]),
    }
    .into()
}

/// One of each kind, in order of kind.
pub(super) fn all() -> Vec<Object> {
    vec![
        node(),
        service(),
        task(),
        network(),
        cluster(),
        secret(),
        config(),
        extension(),
        resource(),
        volume(),
        token(),
    ]
}
