//! Networks.

use super::*;

/// A network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    /// What was asked for.
    pub spec: NetworkSpec,
    /// What the driver needs to know of it on every node; filled in by the allocator.
    pub driver_state: Option<Driver>,
    /// The addresses in use; filled in by the allocator.
    pub ipam: Option<Ipam>,
    /// To be removed when nothing uses it any more.
    pub pending_delete: bool,
}

/// What is asked of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// The driver; `None` means the default.
    pub driver: Option<Driver>,
    /// Addresses of version 6 too.
    pub ipv6: bool,
    /// No way out of the network.
    pub internal: bool,
    /// How addresses are given out; `None` means the default.
    pub ipam: Option<Ipam>,
    /// Containers outside services may attach.
    pub attachable: bool,
    /// The network that routes published ports. There is at most one.
    pub ingress: bool,
    /// The name of a network on each node to take the configuration from.
    pub config_from: String,
}

/// How a network's addresses are given out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    /// Who gives them out.
    pub driver: Driver,
    /// From what.
    pub configs: Vec<IpamConfig>,
}

/// A range of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamConfig {
    /// Version 4 or 6.
    pub family: AddressFamily,
    /// The network, CIDR.
    pub subnet: String,
    /// The part of it to take addresses from, CIDR; empty for all.
    pub range: String,
    /// The gateway's address; empty to choose one.
    pub gateway: String,
    /// Addresses taken: name to address.
    pub reserved: BTreeMap<String, String>,
}

/// The version of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressFamily {
    /// 4, unless the subnet says otherwise.
    #[default]
    Unknown,
    /// Version 4.
    Ipv4,
    /// Version 6.
    Ipv6,
}

/// A request to attach to a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachmentConfig {
    /// The network.
    pub target: ObjectId,
    /// Other names to be known by there.
    pub aliases: Vec<String>,
    /// Addresses wanted, CIDR.
    pub addresses: Vec<String>,
    /// Options of the network's driver for this attachment.
    pub driver_options: BTreeMap<String, String>,
}

/// A task's or node's place in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    /// The network.
    pub network_id: ObjectId,
    /// Its addresses there, CIDR.
    pub addresses: Vec<String>,
    /// Its other names there.
    pub aliases: Vec<String>,
    /// Options of the network's driver for this attachment.
    pub driver_options: BTreeMap<String, String>,
}

/// How a service is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// How a name becomes an address.
    pub mode: ResolutionMode,
    /// Ports that are published.
    pub ports: Vec<PortConfig>,
}

/// How a service's name becomes an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResolutionMode {
    /// One virtual address, balanced by the nodes.
    #[default]
    VirtualIp,
    /// The addresses of all tasks.
    DnsRoundRobin,
}

/// A published port.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortConfig {
    /// For people.
    pub name: String,
    /// The transport.
    pub protocol: Protocol,
    /// The port inside.
    pub target_port: u32,
    /// The port outside; zero to choose one.
    pub published_port: u32,
    /// Where it is published.
    pub publish_mode: PublishMode,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Where a port is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node, routed to the tasks.
    #[default]
    Ingress,
    /// On the nodes that run a task.
    Host,
}

/// How a service is reached, as the allocator arranged it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// What was asked for.
    pub spec: EndpointSpec,
    /// The ports, with the chosen numbers.
    pub ports: Vec<PortConfig>,
    /// A virtual address in each network.
    pub virtual_ips: Vec<VirtualIp>,
}

/// A service's virtual address in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    /// The network.
    pub network_id: ObjectId,
    /// The address, CIDR.
    pub addr: String,
}
