// A robot of another vendor: publishes joint states, takes commands as its next positions, counts what it heard.
// usage: peer DOMAIN COUNT JOINT...   prints one line when it has received COUNT commands, then goes on until killed
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fastdds/dds/domain/DomainParticipant.hpp>
#include <fastdds/dds/domain/DomainParticipantFactory.hpp>
#include <fastdds/dds/publisher/DataWriter.hpp>
#include <fastdds/dds/publisher/Publisher.hpp>
#include <fastdds/dds/subscriber/DataReader.hpp>
#include <fastdds/dds/subscriber/SampleInfo.hpp>
#include <fastdds/dds/subscriber/Subscriber.hpp>
#include <fastdds/dds/topic/Topic.hpp>
#include <fastdds/dds/topic/TypeSupport.hpp>
#include <fastdds/rtps/transport/UDPv4TransportDescriptor.h>
#include <fastrtps/utils/IPLocator.h>

#include "messagesPubSubTypes.h"

using namespace eprosima::fastdds::dds;
using namespace eprosima::fastrtps::rtps;

static DomainParticipantQos loopback_only() {
    DomainParticipantQos qos = PARTICIPANT_QOS_DEFAULT;
    qos.transport().use_builtin_transports = false;
    auto udp = std::make_shared<eprosima::fastdds::rtps::UDPv4TransportDescriptor>();
    udp->interfaceWhiteList.push_back("127.0.0.1");
    qos.transport().user_transports.push_back(udp);
    Locator_t here;
    IPLocator::setIPv4(here, "127.0.0.1");
    qos.wire_protocol().builtin.metatrafficUnicastLocatorList.push_back(here);
    qos.wire_protocol().builtin.initialPeersList.push_back(here);
    return qos;
}

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    const int wanted = std::atoi(argv[2]);
    std::vector<std::string> joints(argv + 3, argv + argc);
    auto* participant = DomainParticipantFactory::get_instance()->create_participant(std::atoi(argv[1]), loopback_only());
    if (participant == nullptr) return 3;
    TypeSupport state_type(new sensor_msgs::msg::dds_::JointState_PubSubType());
    TypeSupport command_type(new std_msgs::msg::dds_::Float64MultiArray_PubSubType());
    state_type.register_type(participant, "sensor_msgs::msg::dds_::JointState_");
    command_type.register_type(participant, "std_msgs::msg::dds_::Float64MultiArray_");
    auto* states = participant->create_topic("rt/joint_states", "sensor_msgs::msg::dds_::JointState_", TOPIC_QOS_DEFAULT);
    auto* commands = participant->create_topic("rt/commands", "std_msgs::msg::dds_::Float64MultiArray_", TOPIC_QOS_DEFAULT);
    DataReaderQos reader_qos = DATAREADER_QOS_DEFAULT;
    reader_qos.reliability().kind = RELIABLE_RELIABILITY_QOS;
    auto* writer = participant->create_publisher(PUBLISHER_QOS_DEFAULT)->create_datawriter(states, DATAWRITER_QOS_DEFAULT);
    auto* reader = participant->create_subscriber(SUBSCRIBER_QOS_DEFAULT)->create_datareader(commands, reader_qos);

    sensor_msgs::msg::dds_::JointState_ state;
    state.name(joints);
    state.position(std::vector<double>(joints.size(), 0.0));
    state.velocity(std::vector<double>(joints.size(), 0.0));
    int heard = 0, tick = 0;
    for (;;) {
        std_msgs::msg::dds_::Float64MultiArray_ command;
        SampleInfo info;
        while (reader->take_next_sample(&command, &info) == ReturnCode_t::RETCODE_OK) {
            if (!info.valid_data || command.data().size() != joints.size()) continue;
            state.position(command.data());
            if (++heard == wanted) {
                std::printf("heard %d last %.17g\n", heard, command.data().back());
                std::fflush(stdout);
            }
        }
        state.header().stamp().sec(1700000000 + tick / 100);
        state.header().stamp().nanosec(10000000u * (tick % 100));
        writer->write(&state);
        ++tick;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
}
